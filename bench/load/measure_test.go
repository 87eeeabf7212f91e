package main

import (
	"math"
	"os"
	"testing"
)

func TestBucketsAreContiguousAndFine(t *testing.T) {
	for _, n := range []int64{0, 1, 63, 64, 65, 127, 128, 129, 1000, 123456, 1 << 20, 1<<40 + 12345} {
		i := bucket(n)
		low, high := lowest(i), lowest(i+1)
		if n < low || n >= high {
			t.Errorf("%d is in bucket %d, which spans [%d, %d)", n, i, low, high)
		}
		if n >= 128 && float64(high-low) > 0.016*float64(n) {
			t.Errorf("bucket of %d is %d wide", n, high-low)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var h histogram
	for i := range int64(100_000) {
		h.add(i * 1000)
	}
	for _, c := range []struct{ q, want float64 }{{0.5, 50_000}, {0.99, 99_000}, {0.999, 99_900}} {
		if got := h.quantile(c.q); math.Abs(got-c.want) > 0.016*c.want {
			t.Errorf("quantile %v is %v us, want %v", c.q, got, c.want)
		}
	}
}

func TestOwnProcessIsMeasured(t *testing.T) {
	p := process{pid: os.Getpid()}
	before, err := p.cpu()
	if err != nil {
		t.Fatal(err)
	}
	own := ownCPU()
	x := 0
	for i := range 200_000_000 {
		x += i & 3
	}
	_ = x
	after, _ := p.cpu()
	if ratio := (after - before) / (ownCPU() - own); ratio < 0.9 || ratio > 1.1 {
		t.Errorf("the CPU clock and rusage disagree: ratio %v", ratio)
	}
	if bytes, _ := p.resident(); bytes < 1<<20 {
		t.Errorf("resident size %d", bytes)
	}
}
