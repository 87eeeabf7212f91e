package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"tailnetpeers/uuid"
)

const (
	resumeLife   = 24 * time.Hour
	resumeHeader = `{"alg":"HS512","kid":"1"}`
)

// resumeKey signs compact JWTs whose claims are the peer id and the expiry. It lives as long as the process.
type resumeKey [64]byte

func newResumeKey() *resumeKey {
	var key resumeKey
	rand.Read(key[:])
	return &key
}

func (k *resumeKey) issue(id uuid.ID, expires time.Time) string {
	claims, _ := json.Marshal(map[string]any{"sub": id.String(), "exp": expires.Unix()})
	signed := base64.RawURLEncoding.EncodeToString([]byte(resumeHeader)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	return signed + "." + base64.RawURLEncoding.EncodeToString(k.sign(signed))
}

func (k *resumeKey) sign(text string) []byte {
	mac := hmac.New(sha512.New, k[:])
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

func (k *resumeKey) verify(token string, now time.Time) (uuid.ID, error) {
	refused := errors.New("resume token is not valid")
	parts := strings.Split(token, ".")
	// Only our own header is taken, so no other algorithm can be talked into.
	if len(parts) != 3 || parts[0] != base64.RawURLEncoding.EncodeToString([]byte(resumeHeader)) {
		return uuid.ID{}, refused
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || !hmac.Equal(signature, k.sign(parts[0]+"."+parts[1])) {
		return uuid.ID{}, refused
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return uuid.ID{}, refused
	}
	var body struct {
		Sub string
		Exp int64
	}
	if err := json.Unmarshal(claims, &body); err != nil || now.Unix() >= body.Exp {
		return uuid.ID{}, refused
	}
	return uuid.Parse(body.Sub)
}
