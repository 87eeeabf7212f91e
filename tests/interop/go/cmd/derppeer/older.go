//go:build !newest

package main

func lent(packet []byte) []byte { return packet }
