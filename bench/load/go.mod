module derpload

go 1.26.0

require golang.org/x/crypto v0.54.0

require golang.org/x/sys v0.49.0 // indirect
