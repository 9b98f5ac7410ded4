// Command charge starts a charge, waits until it runs, stops it and prints the order. Go 1.19 or later, standard library only.
//
//	export CHARGEGATE_URL=http://127.0.0.1:7055 CHARGEGATE_KEY=...
//	export CHARGEGATE_HMAC_SECRET=...     # only for keys that must sign
//	go run ./charge 40aace04 1 30         # device, port, minutes
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	base     = "/api/v1/third"
	patience = 120 * time.Second
)

// APIError is a refusal of the gateway. Branch on Code; Message is for people; quote RequestID when you ask for help.
type APIError struct {
	Status    int
	Code      string          `json:"error"`
	Message   string          `json:"message"`
	Data      json.RawMessage `json:"data"`
	RequestID string          `json:"request_id"`
}

func (e *APIError) Error() string {
	return fmt.Sprintf("%d %s: %s (request %s)", e.Status, e.Code, e.Message, e.RequestID)
}

// Gateway makes requests.
type Gateway struct {
	URL, Key, Secret string
	client           http.Client
}

// Call makes a request and reads the data of its answer into out. It tries again where that is safe and makes sense: GET always,
// POST only with once, an Idempotency-Key, because then the gateway knows a repetition and does nothing twice.
func (g *Gateway) Call(method, path string, body any, once string, out any) error {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return err
		}
	}
	repeatable := method == http.MethodGet || once != ""
	for deadline := time.Now().Add(patience); ; {
		data, wait, err := g.send(method, base+path, payload, once)
		if err == nil {
			return json.Unmarshal(data, out)
		}
		if wait == 0 || !repeatable || time.Now().After(deadline) {
			return err
		}
		log.Printf("%v: again", err)
		time.Sleep(wait)
	}
}

// send makes one attempt. A wait above zero says that another one may succeed after it.
func (g *Gateway) send(method, path string, payload []byte, once string) (data json.RawMessage, wait time.Duration, err error) {
	request, err := http.NewRequest(method, g.URL+path, bytes.NewReader(payload))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("X-Api-Key", g.Key)
	if len(payload) > 0 {
		request.Header.Set("Content-Type", "application/json")
	}
	if once != "" {
		request.Header.Set("Idempotency-Key", once)
	}
	if g.Secret != "" {
		// Each attempt has a nonce of its own: a nonce counts once.
		timestamp, nonce := strconv.FormatInt(time.Now().Unix(), 10), newID()
		request.Header.Set("X-Timestamp", timestamp)
		request.Header.Set("X-Nonce", nonce)
		request.Header.Set("X-Signature", Signature(g.Secret, method, path, timestamp, nonce, payload))
	}
	response, err := g.client.Do(request)
	if err != nil {
		// No answer: it may have taken effect or not. The same key finds out.
		return nil, time.Second, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, time.Second, err
	}
	if response.StatusCode/100 == 2 {
		var answer struct{ Data json.RawMessage }
		err = json.Unmarshal(text, &answer)
		return answer.Data, 0, err
	}
	refusal := &APIError{Status: response.StatusCode}
	if err := json.Unmarshal(text, refusal); err != nil {
		return nil, time.Second, fmt.Errorf("%s, and no JSON: %w", response.Status, err)
	}
	if refusal.Status == 429 || refusal.Status == 503 || refusal.Code == "IDEMPOTENCY_IN_PROGRESS" {
		wait = time.Second
		if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil {
			wait = time.Duration(seconds) * time.Second
		}
	}
	return nil, wait, refusal
}

// Signature signs a request; path is path and query exactly as sent.
func Signature(secret, method, path, timestamp, nonce string, payload []byte) string {
	digest := sha256.Sum256(payload)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(strings.Join([]string{method, path, timestamp, nonce, hex.EncodeToString(digest[:])}, "\n")))
	return hex.EncodeToString(mac.Sum(nil))
}

// Event is an entry of the log.
type Event struct {
	EventType string `json:"event_type"`
	OrderNo   string `json:"order_no"`
	Pos       int64  `json:"pos"`
	Data      Order  `json:"data"`
}

// Order is what an order is now; fields that are not known yet are zero here.
type Order struct {
	OrderNo         string `json:"order_no"`
	StatusText      string `json:"status_text"`
	DurationSeconds int    `json:"duration_seconds"`
	EnergyWh        int    `json:"energy_wh"`
	FailureReason   string `json:"failure_reason"`
}

// Events hands over the events of the log behind position after, as they come, until handle says that it is done. Keep the last
// position you have dealt with, in the transaction in which you dealt with it, and begin there after a restart.
func (g *Gateway) Events(after int64, handle func(Event) (done bool, err error)) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		var page struct {
			Items     []Event
			NextAfter int64 `json:"next_after"`
		}
		if err := g.Call(http.MethodGet, fmt.Sprintf("/events?after=%d&limit=500", after), nil, "", &page); err != nil {
			return err
		}
		for _, event := range page.Items {
			if done, err := handle(event); done || err != nil {
				return err
			}
		}
		after = page.NextAfter
		if len(page.Items) == 0 {
			time.Sleep(500 * time.Millisecond)
		}
	}
	return errors.New("the event did not come")
}

func newID() string {
	var bytes [16]byte
	if _, err := rand.Read(bytes[:]); err != nil {
		panic(err)
	}
	return hex.EncodeToString(bytes[:])
}

func run(g *Gateway, device string, portNo, minutes int) error {
	for page := 1; ; page++ {
		var found struct {
			Items []struct {
				DeviceID string `json:"device_id"`
				Protocol string
				Score    int
			}
			Total, Size int
		}
		if err := g.Call(http.MethodGet, fmt.Sprintf("/devices?online=true&page=%d&size=200", page), nil, "", &found); err != nil {
			return err
		}
		for _, one := range found.Items {
			fmt.Println("online:", one.DeviceID, one.Protocol, "score", one.Score)
		}
		if page*found.Size >= found.Total {
			break
		}
	}

	// One key per thing your customer wants, made and stored before the first attempt. After a crash you repeat it.
	once := newID()
	wanted := map[string]any{"port_no": portNo, "mode": "time", "duration_minutes": minutes, "paid_cent": 150}
	var order, again Order
	if err := g.Call(http.MethodPost, "/devices/"+device+"/charge", wanted, once, &order); err != nil {
		return err
	}
	fmt.Println("order:", order.OrderNo, order.StatusText)
	if err := g.Call(http.MethodPost, "/devices/"+device+"/charge", wanted, once, &again); err != nil {
		return err
	}
	if again.OrderNo != order.OrderNo {
		return errors.New("the same key is the same order")
	}

	// 202 said that the order is stored. What the device makes of it is told by events, the first of which has a position.
	var history struct{ Items []Event }
	if err := g.Call(http.MethodGet, "/orders/"+order.OrderNo+"/events", nil, "", &history); err != nil {
		return err
	}
	var after int64
	if len(history.Items) > 0 {
		after = history.Items[0].Pos
	}
	return g.Events(after, func(event Event) (bool, error) {
		if event.OrderNo != order.OrderNo {
			return false, nil
		}
		fmt.Println("event:", event.EventType)
		switch event.EventType {
		case "charging.started":
			// A stop needs no key: repeated, it is answered the same. The key is what lets Call try again.
			return false, g.Call(http.MethodPost, "/orders/"+order.OrderNo+"/stop", nil, newID(), &again)
		case "order.failed", "order.timeout":
			return false, fmt.Errorf("it did not charge: %s", event.Data.FailureReason)
		case "order.settled":
			// The totals are final: bill by this event and no other.
			total := event.Data
			fmt.Println("settled:", order.OrderNo, total.StatusText, total.DurationSeconds, "s", total.EnergyWh, "Wh")
			return true, nil
		}
		return false, nil
	})
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: charge DEVICE PORT MINUTES")
	}
	portNo, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	minutes, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	gateway := &Gateway{
		URL:    strings.TrimSuffix(os.Getenv("CHARGEGATE_URL"), "/"),
		Key:    os.Getenv("CHARGEGATE_KEY"),
		Secret: os.Getenv("CHARGEGATE_HMAC_SECRET"),
		client: http.Client{Timeout: 10 * time.Second},
	}
	var refusal *APIError
	switch err := run(gateway, os.Args[1], portNo, minutes); {
	case err == nil:
	case errors.As(err, &refusal) && refusal.Code == "PORT_BUSY":
		log.Fatalf("the port is taken: %s", refusal.Data)
	case errors.As(err, &refusal) && refusal.Code == "DEVICE_OFFLINE":
		log.Fatal("the device is not connected: try again when device.online came")
	default:
		log.Fatal(err)
	}
}
