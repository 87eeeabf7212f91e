// Autocertcache obtains a certificate as derper does in its letsencrypt mode and leaves the cache that derper would:
//
//	autocertcache -directory https://127.0.0.1:14000/dir -trusted root.pem -name relay.example -dir certs -listen 127.0.0.1:5002
//
// The authority proves the name at -listen (http-01).
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// located adds to the answer that ends an order where the order is, as Let's Encrypt does and pebble does not: the library
// asks there for the certificate.
type located struct{ http.RoundTripper }

func (l located) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.RoundTripper.RoundTrip(r)
	if err == nil && strings.Contains(r.URL.Path, "/finalize-order/") && answer.Header.Get("Location") == "" {
		answer.Header.Set("Location", strings.Replace(r.URL.String(), "/finalize-order/", "/my-order/", 1))
	}
	return answer, err
}

func main() {
	directory := flag.String("directory", "", "URL of the authority's directory")
	trusted := flag.String("trusted", "", "PEM file with the root of the authority's own certificate")
	name := flag.String("name", "", "host name of the certificate")
	dir := flag.String("dir", "", "folder of the cache")
	listen := flag.String("listen", "", "where the authority looks")
	flag.Parse()

	pem, err := os.ReadFile(*trusted)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatalf("%s: no certificate", *trusted)
	}
	manager := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		HostPolicy: autocert.HostWhitelist(*name),
		Cache:      autocert.DirCache(*dir),
		Client: &acme.Client{
			DirectoryURL: *directory,
			HTTPClient:   &http.Client{Transport: located{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}},
		},
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	// From here on the manager knows that http-01 is possible.
	answer := manager.HTTPHandler(nil)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Host = *name // without the port, as at port 80
		answer.ServeHTTP(w, r)
	})
	go func() { log.Fatal(http.Serve(listener, handler)) }()
	// What makes a client one that takes ECDSA, as all of today's do.
	hello := &tls.ClientHelloInfo{
		ServerName:       *name,
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
	}
	if _, err := manager.GetCertificate(hello); err != nil {
		log.Fatal(err)
	}
}
