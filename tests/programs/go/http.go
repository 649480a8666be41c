// HTTP, as net/http does it.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Serves from now on: / answers at once, /last too and closes the connection, /work after the time
// in "for" and then with so much that a client who is gone shows, /while_asked works until the client
// is gone, /never ends.
func (t *talker) serve(args []string) (string, error) {
	idle, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return "", err
	}
	handlers := http.NewServeMux()
	handlers.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(answer, "hello")
	})
	handlers.HandleFunc("/last", func(answer http.ResponseWriter, _ *http.Request) {
		answer.Header().Set("Connection", "close")
		fmt.Fprintln(answer, "goodbye")
	})
	handlers.HandleFunc("/work", work)
	handlers.HandleFunc("/while_asked", func(_ http.ResponseWriter, request *http.Request) {
		<-request.Context().Done()
	})
	handlers.HandleFunc("/never", func(http.ResponseWriter, *http.Request) {
		log.Print("request taken")
		select {}
	})
	server := http.Server{Handler: handlers, IdleTimeout: idle, ErrorLog: log.Default()}
	go server.Serve(listener)
	return listener.Addr().String(), nil
}

// Serves what it gets from another server by at most so many connections.
func (t *talker) front(args []string) (string, error) {
	size, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return "", err
	}
	pool := http.Client{Transport: &http.Transport{MaxConnsPerHost: size}}
	go http.Serve(listener, http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		got, err := fetch(&pool, args[1])
		fmt.Fprintln(answer, got, err)
	}))
	return listener.Addr().String(), nil
}

// Does not ask the request's context whether anybody still waits, as most handlers do not.
func work(answer http.ResponseWriter, request *http.Request) {
	took, err := time.ParseDuration(request.URL.Query().Get("for"))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	log.Print("request taken")
	time.Sleep(took)
	for written := 0; written < 1<<24; {
		n, err := answer.Write(make([]byte, 1<<16))
		written += n
		if err != nil {
			log.Printf("answer: %v", err)
			return
		}
	}
	log.Print("answered")
}

func (t *talker) get(args []string) (string, error) {
	timeout, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	return fetch(&client, args[0])
}

func fetch(client *http.Client, url string) (string, error) {
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return fmt.Sprintf("%d, %d bytes", answer.StatusCode, len(body)), err
}

// A request over a connection from dial, which may have been idle: as a pool makes it that does not
// look before it reuses.
func (t *talker) request(args []string) (string, error) {
	conn := t.connections[args[0]]
	request, err := http.NewRequest(http.MethodGet, "http://"+conn.RemoteAddr().String()+args[1], nil)
	if err != nil {
		return "", err
	}
	if err := request.Write(conn); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(answer.Body)
	return fmt.Sprintf("%d, %d bytes", answer.StatusCode, len(body)), err
}

// Asks again and again with a pause before the next request, by a pool of connections.
func (t *talker) reuse(args []string) (string, error) {
	pause, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	times, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	for i := 0; i < times; i++ {
		if i > 0 {
			time.Sleep(pause)
		}
		if _, err := fetch(http.DefaultClient, args[0]); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d answered", times), nil
}

// Asks and cancels the request's context, again and again; answers with the last error.
func (t *talker) cancel(args []string) (string, error) {
	after, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	times, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	for ; times > 0; times-- {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(after, cancel)
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
		if err != nil {
			return "", err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil {
			answer.Body.Close()
			return "", fmt.Errorf("an answer before the request was cancelled")
		}
		if times == 1 {
			return "", err
		}
	}
	return "ok", nil
}

// Asks and keeps the answers without reading or closing their bodies.
func (t *talker) hoard(args []string) (string, error) {
	times, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	for i := 0; i < times; i++ {
		answer, err := http.Get(args[0])
		if err != nil {
			return "", err
		}
		hoarded = append(hoarded, answer)
	}
	return strconv.Itoa(len(hoarded)), nil
}

var hoarded []*http.Response

// Makes so many requests by so many workers at once, with a timeout unless it is 0.
func (t *talker) load(args []string) (string, error) {
	requests, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	workers, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	timeout, err := time.ParseDuration(args[4])
	if err != nil {
		return "", err
	}
	transport := http.Transport{DisableKeepAlives: args[3] != "true", MaxIdleConnsPerHost: workers}
	client := http.Client{Transport: &transport, Timeout: timeout}
	var answered, failed int64
	var all sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := 0; i < requests/workers; i++ {
				if _, err := fetch(&client, args[0]); err != nil {
					log.Print(err)
					atomic.AddInt64(&failed, 1)
				} else {
					atomic.AddInt64(&answered, 1)
				}
			}
		}()
	}
	all.Wait()
	transport.CloseIdleConnections()
	return fmt.Sprintf("%d answered, %d failed", answered, failed), nil
}
