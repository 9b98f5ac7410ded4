// Reads 50-byte frames and answers each with 28 bytes: one goroutine per connection, nothing else.
//
//	go build -o peer . && ./peer PORT
package main

import (
	"io"
	"log"
	"net"
	"os"
)

const (
	frameLen = 50
	replyLen = 28
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: peer PORT")
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", os.Args[1]))
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}

// TCP_NODELAY is what Go's net package sets by itself.
func serve(conn net.Conn) {
	defer conn.Close()
	var frame [frameLen]byte
	// Magic and length: the load tells frames apart.
	reply := [replyLen]byte{0xFC, 0xFF, 0x00, 0x18}
	for {
		if _, err := io.ReadFull(conn, frame[:]); err != nil {
			return
		}
		if _, err := conn.Write(reply[:]); err != nil {
			return
		}
	}
}
