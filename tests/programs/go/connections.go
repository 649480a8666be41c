// Plain connections.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

type connection = *net.TCPConn

type talker struct {
	listener    net.Listener
	connections map[string]connection
}

var leaks sync.Map

func (t *talker) listen(args []string) (string, error) {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return "", err
	}
	t.listener = listener
	return listener.Addr().String(), nil
}

func (t *talker) accept(args []string) (string, error) {
	accepted, err := t.listener.Accept()
	if err != nil {
		return "", err
	}
	t.connections[args[0]] = accepted.(connection)
	return accepted.RemoteAddr().String(), nil
}

// From now on accepts whoever comes, and "drops" the connection at once, or "leaks" it: reads to
// the end and never closes.
func (t *talker) acceptAll(args []string) (string, error) {
	handle := map[string]func(net.Conn){
		"drop": func(accepted net.Conn) {
			accepted.Close()
		},
		"leak": func(accepted net.Conn) {
			read, err := io.Copy(io.Discard, accepted)
			// Kept reachable, or its finalizer would close it.
			leaks.Store(accepted, true)
			log.Printf("leaked after %d bytes: %v", read, err)
		},
	}[args[0]]
	if handle == nil {
		return "", fmt.Errorf("nothing called %s", args[0])
	}
	go func() {
		for {
			accepted, err := t.listener.Accept()
			if err != nil {
				log.Print(err)
				return
			}
			go handle(accepted)
		}
	}()
	return "ok", nil
}

func (t *talker) dial(args []string) (string, error) {
	timeout, err := time.ParseDuration(args[2])
	if err != nil {
		return "", err
	}
	dialer := net.Dialer{Timeout: timeout}
	dialed, err := dialer.Dial("tcp", args[1])
	if err != nil {
		return "", err
	}
	t.connections[args[0]] = dialed.(connection)
	return dialed.LocalAddr().String(), nil
}

func (t *talker) send(args []string) (string, error) {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	sent, err := t.connections[args[0]].Write(make([]byte, size))
	return strconv.Itoa(sent), err
}

func (t *talker) say(args []string) (string, error) {
	sent, err := fmt.Fprintf(t.connections[args[0]], "%s\r\n", args[1])
	return strconv.Itoa(sent), err
}

func (t *talker) recv(args []string) (string, error) {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	received, err := t.connections[args[0]].Read(make([]byte, size))
	return strconv.Itoa(received), err
}

// Writes until that fails.
func (t *talker) fill(args []string) (string, error) {
	for {
		if _, err := t.connections[args[0]].Write(make([]byte, 1<<16)); err != nil {
			return "", err
		}
	}
}

func (t *talker) keepAlive(args []string) (string, error) {
	period, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	return "ok", t.connections[args[0]].SetKeepAlivePeriod(period)
}

func (t *talker) userTimeout(args []string) (string, error) {
	timeout, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	raw, err := t.connections[args[0]].SyscallConn()
	if err != nil {
		return "", err
	}
	const tcpUserTimeout = 18 // not in package syscall
	var failed error
	err = raw.Control(func(fd uintptr) {
		milliseconds := int(timeout.Milliseconds())
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, milliseconds)
	})
	if err != nil {
		return "", err
	}
	return "ok", failed
}

func (t *talker) lingerZero(args []string) (string, error) {
	return "ok", t.connections[args[0]].SetLinger(0)
}

func (t *talker) closeWrite(args []string) (string, error) {
	return "ok", t.connections[args[0]].CloseWrite()
}

func (t *talker) close(args []string) (string, error) {
	return "ok", t.connections[args[0]].Close()
}
