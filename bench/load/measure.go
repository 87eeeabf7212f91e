package main

import (
	"bytes"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

var began = time.Now()

// nanotime is a monotonic clock in nanoseconds since the program began.
func nanotime() int64 { return int64(time.Since(began)) }

// histogram counts nanoseconds in 64 steps per power of two: every quantile within 1.6 %, no allocation.
type histogram struct {
	counts [64 * 40]uint64 // up to 2^45 ns, ten hours
	total  uint64
	max    int64
}

func (h *histogram) add(nanos int64) {
	if nanos < 0 {
		nanos = 0
	}
	if nanos > h.max {
		h.max = nanos
	}
	h.counts[bucket(nanos)]++
	h.total++
}

func bucket(nanos int64) int {
	if nanos < 64 {
		return int(nanos)
	}
	shift := bits.Len64(uint64(nanos)) - 7
	return min(64*shift+int(nanos>>shift), 64*40-1)
}

// lowest is the inverse of bucket: the smallest value of bucket i.
func lowest(i int) int64 {
	if i < 128 {
		return int64(i)
	}
	shift := i/64 - 1
	return int64(i-64*shift) << shift
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

func (h *histogram) quantile(q float64) float64 {
	want, seen := uint64(q*float64(h.total)), uint64(0)
	for i, n := range h.counts {
		seen += n
		if seen > want {
			return float64(lowest(i)+lowest(i+1)) / 2 / 1000
		}
	}
	return float64(h.max) / 1000
}

// quantiles are microseconds.
type quantiles struct {
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	P999    float64 `json:"p999"`
	Max     float64 `json:"max"`
	Samples uint64  `json:"samples"`
}

func (h *histogram) quantiles() *quantiles {
	if h.total == 0 {
		return nil
	}
	return &quantiles{h.quantile(0.5), h.quantile(0.99), h.quantile(0.999), float64(h.max) / 1000, h.total}
}

// process is the relay under test, children included; far is the second of two meshed ones, or 0.
type process struct{ pid, far int }

// cpu is user and system time in seconds.  The process CPU clock counts nanoseconds and all threads, ended ones
// too; utime + stime of /proc are the same number cut to 10 ms, which is too coarse for a slow trickle of packets.
func (p process) cpu() (float64, error) {
	if p.pid == 0 {
		return 0, nil
	}
	pids, err := p.pids()
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, pid := range pids {
		clock := uintptr(^uint32(pid)<<3 | 2) // CPUCLOCK_SCHED of a process, as clock_getcpuclockid computes it
		var now syscall.Timespec
		_, _, e := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, uintptr(int32(clock)), uintptr(unsafe.Pointer(&now)), 0)
		if e != 0 {
			if pid == p.pid || pid == p.far {
				return 0, fmt.Errorf("CPU clock of process %d: %w", pid, e)
			}
			continue // a child that ended meanwhile
		}
		sum += float64(now.Nano()) / 1e9
	}
	return sum, nil
}

// user is user time in seconds, in steps of 10 ms: what the relay's own code takes, and not the kernel.
func (p process) user() float64 {
	pids, err := p.pids()
	if p.pid == 0 || err != nil {
		return 0
	}
	var ticks int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(string(bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])[11]), 10, 64)
		ticks += n
	}
	return float64(ticks) / 100
}

// resident is the memory in bytes that belongs to the process and its children.
func (p process) resident() (int64, error) {
	if p.pid == 0 {
		return 0, nil
	}
	pids, err := p.pids()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if fields := bytes.Fields(b); len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum, nil
}

func (p process) pids() ([]int, error) {
	pids, err := family(p.pid)
	if err != nil || p.far == 0 {
		return pids, err
	}
	far, err := family(p.far)
	return append(pids, far...), err
}

// family is pid and all its descendants.
func family(root int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold anything: the fields start after the last one.
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		parent, _ := strconv.Atoi(string(fields[1]))
		children[parent] = append(children[parent], pid)
	}
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	return pids, nil
}

// ownCPU is the generator's own user and system time in seconds.
func ownCPU() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// raiseLimit lifts the soft limit of open files to the hard one: 10,000 clients are 10,000 descriptors.
func raiseLimit() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
}
