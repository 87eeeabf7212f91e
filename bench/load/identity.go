package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"

	"golang.org/x/crypto/nacl/box"
)

const nonceBytes = 24

// identity is a client's key and its ClientInfo frame, made before anything is timed: the curve is the larger part
// of a login, and the generator's share of it must not hide the relay's.
type identity struct {
	public [32]byte
	shared [32]byte
	info   []byte
}

func newIdentity(server *[32]byte) (*identity, error) {
	public, private, err := box.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	who := &identity{public: *public}
	if server == nil { // for the floor, and for the connection that learns the relay's key
		return who, nil
	}
	box.Precompute(&who.shared, server, private)
	var nonce [nonceBytes]byte
	rand.Read(nonce[:])
	payload := append(who.public[:], nonce[:]...)
	payload = box.SealAfterPrecomputation(payload, []byte(`{"version":2,"CanAckPings":true}`), &nonce, &who.shared)
	who.info = append([]byte{frameClientInfo, 0, 0, 0, 0}, payload...)
	binary.BigEndian.PutUint32(who.info[1:], uint32(len(payload)))
	return who, nil
}

// open proves that the relay holds the key it named.
func (who *identity) open(serverInfo []byte) error {
	if len(serverInfo) < nonceBytes {
		return errors.New("ServerInfo is too short")
	}
	nonce := [nonceBytes]byte(serverInfo)
	if _, ok := box.OpenAfterPrecomputation(nil, serverInfo[nonceBytes:], &nonce, &who.shared); !ok {
		return errors.New("ServerInfo does not open: the relay has another key than it said")
	}
	return nil
}

func newIdentities(count int, server *[32]byte) ([]*identity, error) {
	all := make([]*identity, count)
	var first error
	var once sync.Once
	var group sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		group.Go(func() {
			for i := w; i < count; i += workers {
				who, err := newIdentity(server)
				if err != nil {
					once.Do(func() { first = err })
					return
				}
				all[i] = who
			}
		})
	}
	group.Wait()
	return all, first
}
