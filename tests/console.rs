//! The console, used as an operator uses it: a real gateway, a simulated charger, and Chromium in front of it.
//!
//! Every test ends by asking the browser what it complained of: script errors, and whatever the page's own policy kept from running.

mod browser;
#[macro_use]
mod gateway;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use browser::{Browser, DOWN, ENTER, ESCAPE};
use chargegate_loadtest::device::{Ap3000Device, Behaviour};
use gateway::{Engine, Gateway, KEY, driven::Driven, until};
use serde_json::{Value, json};

/// Scopes of the key `read`.
const READER: &str = "key-that-only-looks";
/// A key whose requests are signed.
const SIGNER: &str = "key-that-signs";
const SECRET: &str = "a secret of the signing key";

fn start(variables: &[(&str, &str)]) -> Gateway {
    let keys = json!([
        {"name": "tests", "key": KEY, "scopes": ["read", "control", "admin"]},
        {"name": "reader", "key": READER, "scopes": ["read"]},
        {"name": "signer", "key": SIGNER, "scopes": ["read", "control"], "require_hmac": true, "hmac_secret": SECRET},
    ]);
    let keys = keys.to_string();
    let variables: Vec<_> =
        [("CHARGEGATE_API_KEYS", keys.as_str())].into_iter().chain(variables.iter().copied()).collect();
    Gateway::start(Engine::Mio, &variables).expect("epoll is everywhere")
}

/// A charger of two ports whose clock runs ten times as fast while it charges.
fn charger(gateway: &Gateway) -> (String, Driven<Ap3000Device>) {
    let device =
        Ap3000Device::new(0, 2, Behaviour { heartbeat_us: 2_000_000, time_factor: 10, ..Behaviour::default() });
    let id = device.phy_id().to_string();
    let device = Driven::connect(gateway.devices, device);
    gateway.knows_port(&id, 2);
    (id, device)
}

fn console(gateway: &Gateway) -> Browser {
    let browser = Browser::start();
    browser.prefers("light");
    browser.open(&format!("http://{}/", gateway.http));
    browser
}

fn sign_in(browser: &Browser, key: &str) {
    browser.fill("#key", key);
    browser.click(".signin .btn");
    browser.find("#main h1");
}

fn go(browser: &Browser, route: &str, heading: &str) {
    browser.run(&format!("location.hash = {route:?}"));
    browser.says("#main h1", heading);
}

#[track_caller]
fn nothing_to_complain_of(browser: &Browser) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn an_operator_starts_a_charge_watches_it_and_reads_what_happened() {
    let gateway = start(&[]);
    let (id, device) = charger(&gateway);
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    browser.says(".charts", "Connections");
    browser.says(".charts figure:first-child", "open");

    // Found by the beginning of its id.
    browser.keys(&["/"]);
    browser.fill("#search", &id[..5]);
    browser.says("#found li", &id);
    browser.keys(&[ENTER]);
    browser.says("#main h1", &id);
    browser.says(".score", "100");
    browser.says(".port[aria-label='Port 2']", "0 W");

    browser.press(".port[aria-label='Port 2']", "Start");
    browser.fill("dialog [name='amount']", "30");
    browser.press("dialog", "Start");
    browser.find(".port[aria-label='Port 2'][data-status='charging']");
    let order_no = browser.text_of(".port[aria-label='Port 2'] footer a");
    assert_eq!(gateway.order(&order_no)["device_id"], id);
    // Ten minutes of the charge, at once; a third of it.
    device.pass(Duration::from_secs(60));
    browser.until("power flows and energy is counted", || {
        let text = browser.text_of(".port[aria-label='Port 2']");
        (!text.contains("\n0 W") && !text.contains("\n0 Wh") && !text.contains("\n0 A")).then_some(())
    });
    browser.until("the start is among its commands", || {
        let row = browser.text_of("[role='tabpanel'] tbody tr");
        (row.contains("start") && row.contains("acked")).then_some(())
    });

    browser.press(".port[aria-label='Port 2'] footer", &order_no);
    browser.says("#main h1", &order_no);
    browser.says(".head .badge", "charging");
    browser.says(".timeline", "order.created");
    browser.says(".timeline", "charging.started");
    browser.says(".steps li.done:nth-child(4)", "Charging");
    // Who asked for it, and the start as it was on the wire, in words and bytes.
    browser.click(".timeline li[data-kind='request'] summary");
    browser.says(".timeline li[data-kind='request'] dl", "tests");
    browser.click(".timeline li[data-kind='frame'] summary");
    browser.says(".timeline li[data-kind='frame'] .lines", "charge_control");
    browser.says(".timeline li[data-kind='frame'] .hex", "44 4e 59");
    browser.press(".head", "Stop");
    browser.press("dialog", "Stop");
    browser.says(".head .badge", "stopped");
    gateway.order_becomes(&order_no, "stopped");
    browser.says(".timeline", "order.settled");

    // What happened shows in the figures.
    go(&browser, "#/overview", "Overview");
    let latency = "figure[aria-label^='Command to acknowledgement']";
    browser.until("the latency of the commands is drawn", || {
        let line =
            browser.run(&format!("return document.querySelector(\"{latency} path.a\")?.getAttribute('d') ?? ''"));
        line.as_str().filter(|line| line.contains('L')).map(drop)
    });
    go(&browser, "#/orders?status=stopped", "Orders");
    browser.says("tbody tr:first-child", &order_no);
    browser.says(".tools .count", "1 order");
    nothing_to_complain_of(&browser);
}

#[test]
fn a_key_shows_what_it_may_and_is_kept_nowhere() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let browser = console(&gateway);
    browser.fill("#key", "no key at all");
    browser.click(".signin .btn");
    browser.says(".alarm", "X-Api-Key");

    sign_in(&browser, READER);
    go(&browser, &format!("#/devices/{id}"), &id);
    browser.find(".port[aria-label='Port 1']");
    let shown = browser.text_of("#main");
    assert!(!shown.contains("Start") && !shown.contains("Disconnect"), "{shown}");
    go(&browser, "#/webhooks", "Webhooks");
    browser.says("#main", "scope admin");
    assert!(browser.look(".nav a[data-section='keys']").is_none());

    let kept = browser.run(
        "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML, history.state])",
    );
    assert!(!kept.as_str().expect("a text").contains(READER), "{kept}");
    browser.reload();
    browser.find("#key");
    nothing_to_complain_of(&browser);
}

#[test]
fn a_key_that_must_sign_signs_in_the_browser() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let browser = console(&gateway);
    browser.fill("#key", SIGNER);
    browser.click(".signin .btn");
    browser.find(".alarm");
    // It was told that a signature is missing, and where the secret goes.
    browser.fill("#secret", SECRET);
    browser.click(".signin .btn");
    browser.find("#main h1");
    go(&browser, &format!("#/devices/{id}"), &id);
    // A body is signed like its absence.
    browser.press(".port[aria-label='Port 1']", "Start");
    browser.choose("dialog [name='mode']", "energy");
    browser.press("dialog", "Start");
    browser.find(".port[aria-label='Port 1'][data-status='charging']");
    browser.press(".port[aria-label='Port 1']", "Stop");
    browser.press("dialog", "Stop the charge");
    browser.until("the charge ends", || browser.look(".port[aria-label='Port 1']:not([data-status='charging'])"));
    nothing_to_complain_of(&browser);
}

/// A third party that answers every delivery with the status that the test sets.
struct Moody {
    server: Arc<tiny_http::Server>,
    status: Arc<AtomicU16>,
}

impl Moody {
    fn start(status: u16) -> Self {
        let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").expect("a port of the kernel's choosing"));
        let status = Arc::new(AtomicU16::new(status));
        let (listening, answered) = (Arc::clone(&server), Arc::clone(&status));
        thread::spawn(move || {
            for request in listening.incoming_requests() {
                // A gateway that ended takes no answer.
                drop(request.respond(tiny_http::Response::empty(answered.load(Ordering::Relaxed))));
            }
        });
        Self { server, status }
    }

    fn endpoints(&self) -> String {
        let addr = self.server.server_addr().to_ip().expect("a TCP address");
        let events = ["order.created", "order.settled"];
        json!([{"name": "shop", "url": format!("http://{addr}/"), "secret": "s", "events": events}]).to_string()
    }
}

impl Drop for Moody {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

#[test]
fn dead_letters_are_looked_at_and_driven_again() {
    // 404 is final: nothing is tried again.
    let shop = Moody::start(404);
    let endpoints = shop.endpoints();
    let variables =
        [("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"), ("CHARGEGATE_WEBHOOK_ENDPOINTS", endpoints.as_str())];
    let gateway = start(&variables);
    let (id, _device) = charger(&gateway);
    let charge = json!({"port_no": 1, "mode": "time", "duration_minutes": 1});
    let order_no = gateway.charge(&id, &charge);
    gateway.order_becomes(&order_no, "completed");

    let browser = console(&gateway);
    sign_in(&browser, KEY);
    go(&browser, "#/webhooks", "Webhooks");
    browser.says("tbody tr", "shop");
    browser.keys(&["j", ENTER]);
    browser.says("#main h1", "shop");
    browser.says("tbody", &order_no);
    browser.says("tbody", "http_404");
    browser.until("both events are dead", || {
        (browser.run("return document.querySelectorAll('tbody tr').length") == 2).then_some(())
    });

    // One by choice, the other as the rest.
    shop.status.store(204, Ordering::Relaxed);
    browser.click("tbody tr:last-child input");
    browser.press("#main", "Redrive 1");
    browser.says("#toasts", "1 dead letter will be delivered again");
    browser.until("one is left", || {
        (browser.run("return document.querySelectorAll('tbody tr').length") == 1).then_some(())
    });
    browser.press("#main", "Redrive all");
    browser.says("[role='tabpanel']", "No dead letters.");
    browser.press("#main", "Deliveries");
    browser.says("tbody", "delivered");
    browser.says("tbody", "http_404");

    browser.press("#main", "Send a test event");
    browser.says("#toasts", "took the test event");
    browser.press("#main", "Disable");
    browser.press("dialog", "Disable");
    browser.says(".head .badge", "disabled");
    browser.press("#main", "Enable");
    browser.press("dialog", "Enable");
    browser.says(".head .badge", "delivering");
    nothing_to_complain_of(&browser);
}

#[test]
fn a_device_is_looked_into_by_its_frames_and_sent_away() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    go(&browser, &format!("#/devices/{id}"), &id);
    browser.press("#main", "Frames");
    browser.says(".frames", "AP3000");
    browser.click(".frames li:first-child summary");
    browser.says(".frames .hex", "44 4e 59");
    let connected_at = gateway.get(&format!("devices/{id}")).data()["connected_at"].clone();
    browser.press("#main", "Disconnect");
    browser.press("dialog", "Disconnect");
    browser.says("#toasts", "The connection is closed");
    until("it came back", || {
        let device = gateway.get(&format!("devices/{id}")).data().clone();
        (device["online"] == true && device["connected_at"] != connected_at).then_some(())
    });

    // A parameter is wanted, told and kept.
    browser.press("#main", "Parameters");
    browser.press("#main", "Read from the device");
    browser.says("[role='tabpanel'] tbody", "as reported");
    nothing_to_complain_of(&browser);
}

#[test]
fn an_instance_is_drained_and_takes_devices_again() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    browser.says(".head .badge", "ready");
    browser.press(".head", "Drain");
    // Nothing happens without a second word.
    browser.press("dialog", "Cancel");
    assert_eq!(gateway.request("GET", "/api/v1/admin/drain", Some(KEY), None).data()["draining"], false);
    browser.press(".head", "Drain");
    browser.press("dialog", "Drain");
    browser.says(".head .badge", "draining");
    assert_eq!(browser.text_of("[role='switch']"), "Take devices again");
    browser.press(".head", "Take devices again");
    browser.press("dialog", "Take devices");
    browser.says(".head .badge", "ready");
    gateway.knows_port(&id, 1);
    nothing_to_complain_of(&browser);
}

#[test]
fn keys_are_made_shown_once_and_deleted() {
    let gateway = start(&[]);
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    go(&browser, "#/keys", "Keys");
    browser.says("tbody", "configuration");
    browser.press(".head", "New key");
    browser.fill("dialog [name='name']", "billing");
    browser.press("dialog", "Create");
    let key = browser.text_of("dialog .secret");
    assert_eq!(gateway.request("GET", "/api/v1/third/devices", Some(&key), None).status, 200);
    browser.press("dialog", "Done");
    browser.until("the new key is listed", || browser.text_of("tbody").contains("billing").then_some(()));
    assert!(!browser.text().contains(&key));
    browser.press("tbody", "Delete");
    browser.press("dialog", "Delete");
    browser.until("it is gone", || (!browser.text_of("tbody").contains("billing")).then_some(()));
    gateway.request("GET", "/api/v1/third/devices", Some(&key), None).refused(401, "UNAUTHORIZED");
    nothing_to_complain_of(&browser);
}

#[test]
fn the_keyboard_reaches_everything() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let browser = console(&gateway);
    browser.fill("#key", KEY);
    browser.keys(&[ENTER]);
    browser.says("#main h1", "Overview");
    for (keys, heading) in [
        (["g", "d"], "Devices"),
        (["g", "o"], "Orders"),
        (["g", "w"], "Webhooks"),
        (["g", "k"], "Keys"),
        (["g", "h"], "Overview"),
    ] {
        browser.keys(&keys);
        browser.says("#main h1", heading);
    }
    browser.keys(&["?"]);
    browser.says("#main h1", "Help");
    let theme = || browser.run("return document.documentElement.dataset.theme");
    assert_eq!(theme(), "light");
    browser.keys(&["t"]);
    assert_eq!(theme(), "dark");

    browser.keys(&["g", "d"]);
    browser.find("tr.row");
    browser.keys(&["j"]);
    assert_eq!(browser.run("return document.activeElement.dataset.href"), format!("#/devices/{id}"));
    // A look again of the view takes the focus from nobody.
    let asked = || browser.run("return performance.getEntriesByType('resource').length").as_u64();
    let before = asked();
    browser.until("the view looks again, twice", || (asked() >= before.map(|count| count + 2)).then_some(()));
    assert_eq!(browser.run("return document.activeElement.dataset.href"), format!("#/devices/{id}"));
    browser.keys(&[ENTER]);
    browser.says("#main h1", &id);

    // What is typed into a field is no command, and Escape leaves it.
    browser.keys(&["/"]);
    browser.keys(&["t", "?", "g", "d"]);
    assert_eq!((theme(), browser.run("return document.activeElement.value")), (json!("dark"), json!("t?gd")));
    browser.keys(&[ESCAPE]);
    assert_eq!(browser.run("return document.activeElement === document.body"), true);
    browser.fill("#search", &id);
    browser.says("#found li", &id);
    browser.keys(&[DOWN, ENTER]);
    browser.says("#main h1", &id);
    nothing_to_complain_of(&browser);
}

#[test]
fn what_devices_are_called_is_shown_and_not_run() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let name = "<img src=x onerror=alert(1)>&amp;";
    let named = gateway.post(&format!("devices/{id}"), &json!({"name": name}));
    assert_eq!(named.status, 200, "{}", named.text);
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    go(&browser, "#/devices", "Devices");
    browser.says("tbody", name);
    go(&browser, "#/devices?search=%3Cimg", "Devices");
    browser.says("tbody", name);
    go(&browser, &format!("#/devices/{id}"), &id);
    browser.says(".head .sub", name);
    // What an address says is shown as well.
    go(&browser, "#/devices/%3Cb%3E", "<b>");
    assert_eq!(browser.run("return document.querySelectorAll('main img, main b b').length"), 0);
    nothing_to_complain_of(&browser);
}

/// Of every text that can be read: its contrast with what is behind it, by WCAG 2, where that is too little.
const PALE_TEXTS: &str = r"
const channel = (c) => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return text.startsWith('color(') ? [r * 255, g * 255, b * 255, a] : [r, g, b, a]; };
const over = (top, under) => top.slice(0, 3).map((c, n) => c * top[3] + under[n] * (1 - top[3]));
const light = (rgb) => .2126 * channel(rgb[0]) + .7152 * channel(rgb[1]) + .0722 * channel(rgb[2]);
const ground = (node) => { if (!node) return [255, 255, 255]; const own = parse(getComputedStyle(node).backgroundColor); return own[3] >= 1 ? own.slice(0, 3) : over(own, ground(node.parentElement)); };
const pale = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(node.tagName) || !node.checkVisibility() || node.closest(':disabled, .busy')) continue;
  const under = ground(node), text = over(parse(getComputedStyle(node).color), under);
  const [a, b] = [light(text), light(under)].sort((x, y) => y - x), contrast = (a + .05) / (b + .05);
  if (contrast < 4.5) pale.push(`${walker.currentNode.data.trim().slice(0, 30)} in ${node.tagName}.${node.className}: ${contrast.toFixed(2)}`);
}
return pale;";

/// Everything that can be operated and does not say what it is.
const NAMELESS: &str = r"
const name = (node) => node.getAttribute('aria-label') || node.labels?.[0]?.textContent.trim() || node.textContent.trim() || node.title;
return [...document.querySelectorAll('a, button, input, select, summary, [role=tab], table, dialog, nav')]
  .filter((node) => node.checkVisibility() && !(name(node) || node.getAttribute('aria-labelledby'))).map((node) => node.outerHTML.slice(0, 120));";

#[test]
fn it_fits_a_phone_and_reads_in_the_dark() {
    let gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let order_no = gateway.charge(&id, &json!({"port_no": 1, "mode": "time", "duration_minutes": 60}));
    gateway.order_becomes(&order_no, "charging");
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    let views = [
        ("#/overview", "Overview"),
        ("#/devices", "Devices"),
        (&format!("#/devices/{id}"), id.as_str()),
        ("#/orders", "Orders"),
        (&format!("#/orders/{order_no}"), order_no.as_str()),
        ("#/webhooks", "Webhooks"),
        ("#/keys", "Keys"),
        ("#/help", "Help"),
    ];
    let none = Value::Array(Vec::new());
    for (width, height, phone, scheme) in
        [(390, 844, true, "light"), (320, 640, true, "dark"), (1360, 900, false, "dark")]
    {
        browser.viewport(width, height, phone);
        browser.prefers(scheme);
        let ground = if scheme == "dark" { "rgb(17, 19, 16)" } else { "rgb(246, 246, 243)" };
        browser.until(&format!("the page is {scheme}"), || {
            (browser.run("return getComputedStyle(document.body).backgroundColor") == ground).then_some(())
        });
        for (route, heading) in views {
            go(&browser, route, heading);
            browser.says("#pulse", if phone { "" } else { "Live" });
            browser.until("the view has looked", || browser.look("#pulse[data-state='live']"));
            let too_wide = browser
                .run("return Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth)");
            assert_eq!(too_wide, 0, "{route} at {width} wide");
            assert_eq!(browser.run(PALE_TEXTS), none, "{route} in the {scheme}");
            assert_eq!(browser.run(NAMELESS), none, "{route}");
        }
    }
    nothing_to_complain_of(&browser);
}

#[test]
fn a_hidden_tab_asks_nothing_and_a_gateway_that_comes_back_is_found() {
    let mut gateway = start(&[]);
    let (id, _device) = charger(&gateway);
    let browser = console(&gateway);
    sign_in(&browser, KEY);
    go(&browser, &format!("#/devices/{id}"), &id);
    browser.find("#pulse[data-state='live']");

    // As the browser says it of a tab that is in the background.
    let hide = |hidden: bool| {
        browser.run(&format!(
            "Object.defineProperty(document, 'hidden', {{ configurable: true, value: {hidden} }}); document.dispatchEvent(new Event('visibilitychange'));"
        ));
    };
    hide(true);
    browser.find("#pulse[data-state='paused']");
    browser.run("performance.clearResourceTimings(); window.turns = 0; window.timer = setInterval(() => { window.turns += 1 }, 1000)");
    browser.until("three turns pass", || browser.run("return window.turns >= 5").as_bool().filter(|passed| *passed));
    assert_eq!(browser.run("return performance.getEntriesByType('resource').length"), 0);
    hide(false);
    browser.find("#pulse[data-state='live']");

    gateway.kill9();
    browser.find("#pulse[data-state='failed']");
    gateway.start_again();
    browser.find("#pulse[data-state='live']");
    browser.says("#main h1", &id);
    nothing_to_complain_of(&browser);
}

#[test]
fn the_page_is_sent_once_and_guarded() {
    let gateway = start(&[]);
    let page = gateway.request("GET", "/", None, None);
    let header =
        |name: &str| page.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!((page.status, header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    let policy = header("content-security-policy");
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let guarded = [header("x-frame-options"), header("referrer-policy"), header("x-content-type-options")];
    assert_eq!(guarded, ["DENY", "no-referrer", "nosniff"]);

    let again = |tags: &str| {
        let request =
            ureq::http::Request::builder().uri(format!("http://{}/", gateway.http)).header("If-None-Match", tags);
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.run(request.body("").expect("a sound request")).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a body").len())
    };
    let etag = header("etag");
    for known in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}")] {
        assert_eq!(again(&known), (304, 0), "{known}");
    }
    assert_eq!(again("\"other\""), (200, page.text.len()));
    gateway.request("POST", "/", None, None).refused(405, "METHOD_NOT_ALLOWED");
}

#[test]
fn the_overview_tells_what_came_since() {
    let gateway = start(&[]);
    let (_, _device) = charger(&gateway);
    let path = "/api/v1/admin/overview";
    let seen = until("there are two samples", || {
        let answer = gateway.request("GET", path, Some(READER), None);
        assert_eq!(answer.status, 200, "{}", answer.text);
        let data = answer.data().clone();
        (data["series"].as_array()?.len() >= 2).then_some(data)
    });
    assert_eq!((&seen["ready"], &seen["draining"], &seen["sample_seconds"]), (&json!(true), &json!(false), &json!(2)));
    let last = seen["series"].as_array().and_then(|series| series.last()).expect("two").clone();
    assert_eq!((&last["connections"], &last["devices_online"]), (&json!(1), &json!(1)));
    let at = last["at"].as_str().expect("a time");
    let later = gateway.request("GET", &format!("{path}?since={at}"), Some(READER), None);
    let later = later.data()["series"].as_array().expect("a list").clone();
    assert!(later.len() <= 1 && later.iter().all(|point| point["at"].as_str() > Some(at)), "{later:?}");
    gateway.request("GET", &format!("{path}?since=yesterday"), Some(READER), None).refused(400, "INVALID_PARAMETER");
    gateway.request("GET", path, None, None).refused(401, "UNAUTHORIZED");
}
