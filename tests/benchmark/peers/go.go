package main

import (
	"log"
	"net"
	"os"
)

func handle(conn net.Conn) {
	defer conn.Close()
	log.Printf("Connection established! %s -> %s", conn.RemoteAddr(), conn.LocalAddr())
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go handle(conn)
	}
}
