// Talker does over TCP what it is told, as a Go program does it: with goroutines, the netpoller and
// net/http. A request is a line on stdin, its answer a line on stdout that begins with "= ". What
// happens by itself, in an HTTP handler or in the server's log, is a line without that beginning.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	talker := talker{connections: map[string]connection{}}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		answer, err := talker.obey(words[0], words[1:])
		if err != nil {
			answer = "error: " + err.Error()
		}
		// One call a line: the log writes there as well.
		fmt.Printf("= %s\n", answer)
	}
}

// The verbs, and what each takes.
func (t *talker) obey(verb string, args []string) (string, error) {
	verbs := map[string]struct {
		args int
		do   func(args []string) (string, error)
	}{
		"listen":       {1, t.listen},      // address
		"accept":       {1, t.accept},      // name of the connection
		"accept_all":   {1, t.acceptAll},   // what to do with each: see there
		"dial":         {3, t.dial},        // name, address, timeout
		"send":         {2, t.send},        // name, bytes
		"say":          {2, t.say},         // name, a word that becomes a line
		"request":      {2, t.request},     // name, path: over a connection that is there
		"recv":         {2, t.recv},        // name, bytes at most
		"fill":         {1, t.fill},        // name
		"keep_alive":   {2, t.keepAlive},   // name, period
		"user_timeout": {2, t.userTimeout}, // name, time
		"linger_0":     {1, t.lingerZero},  // name
		"half_close":   {1, t.closeWrite},  // name
		"close":        {1, t.close},       // name
		"serve":        {2, t.serve},       // address, idle timeout
		"front":        {3, t.front},       // address, URL, connections at most
		"get":          {2, t.get},         // URL, timeout
		"reuse":        {3, t.reuse},       // URL, pause, how often
		"cancel":       {3, t.cancel},      // URL, after how long, how often
		"hoard":        {2, t.hoard},       // URL, how often
		"load":         {5, t.load},        // URL, requests, workers, keep-alive, timeout
	}
	known, ok := verbs[verb]
	if !ok || len(args) != known.args {
		return "", fmt.Errorf("no verb %s of %d arguments", verb, len(args))
	}
	return known.do(args)
}
