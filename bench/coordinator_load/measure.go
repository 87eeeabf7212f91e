package main

import (
	"bytes"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

var began = time.Now()

// wallNanos is the wall clock of the start plus monotonic time since: a stamp that peers accept and no clock step moves.
func wallNanos() int64 { return began.UnixNano() + int64(time.Since(began)) }

// histogram counts nanoseconds in 64 steps for each power of two, from many goroutines.
type histogram struct {
	counts [64 * 40]atomic.Uint64
}

func (h *histogram) add(nanos int64) {
	i := max(nanos, 0)
	if nanos >= 64 {
		shift := bits.Len64(uint64(nanos)) - 7
		i = int64(64*shift) + nanos>>shift
	}
	h.counts[min(i, 64*40-1)].Add(1)
}

// quantiles are microseconds.
type quantiles struct {
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	P999    float64 `json:"p999"`
	Samples uint64  `json:"samples"`
}

func (h *histogram) quantiles() *quantiles {
	total := uint64(0)
	for i := range h.counts {
		total += h.counts[i].Load()
	}
	if total == 0 {
		return nil
	}
	at := func(q float64) float64 {
		want, seen := uint64(q*float64(total)), uint64(0)
		for i := range h.counts {
			if seen += h.counts[i].Load(); seen > want {
				return float64(middle(i)) / 1000
			}
		}
		return 0
	}
	return &quantiles{at(0.5), at(0.99), at(0.999), total}
}

func middle(i int) int64 {
	if i < 128 {
		return int64(i)
	}
	shift := i/64 - 1
	return (int64(i-64*shift)<<shift + int64(i+1-64*shift)<<shift) / 2
}

// process is the server under test, or several that serve as one, children included.
type process []int

func parseProcesses(text string) (process, error) {
	var found process
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("-pid: %w", err)
		}
		found = append(found, pid)
	}
	return found, nil
}

// cpu is user and system time in seconds, by the process CPU clocks: nanoseconds, ended threads too.
func (p process) cpu() float64 {
	sum := 0.0
	for _, pid := range p.family() {
		clock := uintptr(^uint32(pid)<<3 | 2) // CPUCLOCK_SCHED of a process
		var now syscall.Timespec
		_, _, e := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, uintptr(int32(clock)), uintptr(unsafe.Pointer(&now)), 0)
		if e == 0 {
			sum += float64(now.Nano()) / 1e9
		}
	}
	return sum
}

// resident is memory in bytes.
func (p process) resident() int64 {
	sum := int64(0)
	for _, pid := range p.family() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if fields := bytes.Fields(text); err == nil && len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}

func (p process) family() []int {
	pids := slices.Clone([]int(p))
	for i := 0; i < len(pids); i++ {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pids[i]))
		for _, task := range tasks {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pids[i], task.Name()))
			for _, field := range bytes.Fields(text) {
				if child, err := strconv.Atoi(string(field)); err == nil {
					pids = append(pids, child)
				}
			}
		}
	}
	return pids
}

func ownCPU() float64 {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
