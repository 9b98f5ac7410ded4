// Command receiver receives webhooks and verifies them. Go 1.19 or later, standard library only.
//
//	export WEBHOOK_SECRET=whsec_...       # as configured for the endpoint
//	export WEBHOOK_SECRET_PREVIOUS=...    # only while you change over
//	go run ./receiver 8080
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tolerance    = 300 * time.Second
	bodyBytesMax = 1 << 20
	seenMax      = 100_000
)

func mac(key []byte, parts ...[]byte) []byte {
	hash := hmac.New(sha256.New, key)
	for _, part := range parts {
		hash.Write(part)
	}
	return hash.Sum(nil)
}

// standardWebhooks is the scheme of standardwebhooks.com: its libraries do the same.
func standardWebhooks(secret string, header http.Header, body []byte) bool {
	key := []byte(secret)
	if strings.HasPrefix(secret, "whsec_") {
		var err error
		if key, err = base64.StdEncoding.DecodeString(secret[len("whsec_"):]); err != nil {
			return false
		}
	}
	prefix := header.Get("webhook-id") + "." + header.Get("webhook-timestamp") + "."
	expected := "v1," + base64.StdEncoding.EncodeToString(mac(key, []byte(prefix), body))
	// There are two signatures while the endpoint has two secrets.
	for _, given := range strings.Split(header.Get("webhook-signature"), " ") {
		if hmac.Equal([]byte(expected), []byte(given)) {
			return true
		}
	}
	return false
}

// gatewayScheme is the scheme of signed API requests; the key is the secret's text.
func gatewayScheme(secret, path string, header http.Header, body []byte) bool {
	digest := sha256.Sum256(body)
	lines := []string{"POST", path, header.Get("X-Timestamp"), header.Get("X-Nonce"), hex.EncodeToString(digest[:])}
	expected := hex.EncodeToString(mac([]byte(secret), []byte(strings.Join(lines, "\n"))))
	return hmac.Equal([]byte(expected), []byte(header.Get("X-Signature")))
}

func fresh(text string) bool {
	seconds, err := strconv.ParseInt(text, 10, 64)
	age := time.Since(time.Unix(seconds, 0))
	return err == nil && age <= tolerance && age >= -tolerance
}

// Receiver is the endpoint.
type Receiver struct {
	secrets []string

	// Events dealt with, and the order they came in. Delivery is at least once, so an event may come again: hours later by a
	// retry, within minutes by somebody who replays a request. In earnest this is a table with a unique column, written in the
	// transaction of the effect.
	mutex sync.Mutex
	seen  map[string]bool
	order []string
}

// verified says whether the gateway sent this just now. One scheme is enough; here both must hold, each by one of our secrets.
func (r *Receiver) verified(path string, header http.Header, body []byte) bool {
	standard, gateway := false, false
	for _, secret := range r.secrets {
		standard = standard || standardWebhooks(secret, header, body)
		gateway = gateway || gatewayScheme(secret, path, header, body)
	}
	return standard && gateway && fresh(header.Get("webhook-timestamp")) && fresh(header.Get("X-Timestamp"))
}

func (r *Receiver) isNew(eventID string) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.seen[eventID] {
		return false
	}
	r.seen[eventID] = true
	if r.order = append(r.order, eventID); len(r.order) > seenMax {
		delete(r.seen, r.order[0])
		r.order = r.order[1:]
	}
	return true
}

func (r *Receiver) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	if request.Method != http.MethodPost {
		response.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, bodyBytesMax))
	if err != nil {
		response.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	// Before any JSON parser touches it.
	if !r.verified(request.RequestURI, request.Header, body) {
		fmt.Println("refused: wrong signature or too old")
		response.WriteHeader(http.StatusUnauthorized)
		return
	}
	var event struct {
		EventID   string `json:"event_id"`
		EventType string `json:"event_type"`
		OrderNo   string `json:"order_no"`
		DeviceID  string `json:"device_phy_id"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		response.WriteHeader(http.StatusBadRequest)
		return
	}
	if r.isNew(event.EventID) {
		// Here is your work: quick, or put into a queue of your own. Within 5 s answer 2xx; 503 has it sent again later; any
		// other 4xx says never again.
		about := event.OrderNo
		if about == "" {
			about = event.DeviceID
		}
		fmt.Println("event:", event.EventType, about)
	} else {
		fmt.Println("repeated:", event.EventType, event.EventID)
	}
	response.WriteHeader(http.StatusNoContent)
}

func main() {
	log.SetFlags(0)
	receiver := &Receiver{seen: map[string]bool{}}
	for _, name := range []string{"WEBHOOK_SECRET", "WEBHOOK_SECRET_PREVIOUS"} {
		if secret := os.Getenv(name); secret != "" {
			receiver.secrets = append(receiver.secrets, secret)
		}
	}
	if len(os.Args) != 2 || len(receiver.secrets) == 0 {
		log.Fatal("usage: WEBHOOK_SECRET=... receiver PORT")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening: http://%s\n", listener.Addr())
	server := http.Server{Handler: receiver, ReadTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}
