//go:build !newest

package main

type regionID = int
