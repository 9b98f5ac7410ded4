//! Chromium as a person uses it: driven by WebDriver, over plain HTTP, in a profile of its own.
//!
//! The programs are those of Debian's packages `chromium` and `chromium-driver`, which `scripts/install-services` installs; where
//! they are missing a test fails. Nothing here sleeps to let something happen: [`until`] looks again until a deadline.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::gateway::{PATIENCE, until};

/// WebDriver's name of the property that holds an element's id.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
pub(crate) const ENTER: &str = "\u{E007}";
pub(crate) const ESCAPE: &str = "\u{E00C}";
pub(crate) const DOWN: &str = "\u{E015}";
const BACKSPACE: &str = "\u{E003}";
const CONTROL: &str = "\u{E009}";

/// A browser with one window. Dropped, it is closed and its driver ended.
pub(crate) struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    /// Removed behind the browser.
    _profile: TempDir,
}

/// What a driver answers when it cannot.
#[derive(Debug)]
pub(crate) struct Refused {
    error: String,
    message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error, self.message.lines().next().unwrap_or_default())
    }
}

/// An element of the page that is open.
#[derive(Clone, Debug)]
pub(crate) struct Element(String);

/// A driver and its port; `None` if it ended before it named one.
fn driver() -> Option<(Child, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromedriver is installed; scripts/install-services does it");
    let stdout = driver.stdout.take().expect("it is piped");
    let (sender, ports) = mpsc::channel();
    thread::spawn(move || {
        // Read to the end, so that it never waits for a reader.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let port = line.split("on port ").nth(1).and_then(|rest| rest.trim_end_matches('.').parse::<u16>().ok());
            if let Some(port) = port.filter(|port| *port != 0) {
                sender.send(port).ok();
            }
        }
    });
    match ports.recv_timeout(PATIENCE) {
        Ok(port) => Some((driver, port)),
        Err(_) => {
            // It may have ended already.
            drop(driver.kill());
            drop(driver.wait());
            None
        }
    }
}

impl Browser {
    /// Starts a driver on a port of the kernel's choosing, and a browser.
    pub(crate) fn start() -> Self {
        // The port is found before it is taken: another driver may be faster.
        let (driver, port) = (0..5).find_map(|_| driver()).expect("the driver names its port");
        let profile = tempfile::tempdir().expect("a temporary directory");
        let config = ureq::Agent::config_builder().timeout_global(Some(2 * PATIENCE)).http_status_as_error(false);
        let mut browser = Self {
            driver,
            agent: config.proxy(None).build().into(),
            session: format!("http://127.0.0.1:{port}/session"),
            _profile: profile,
        };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--window-size=1360,900",
            &profile,
        ];
        let capabilities = json!({"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        }});
        let made = browser.call("POST", "", Some(&json!({"capabilities": capabilities}))).expect("a browser");
        let id = made["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refused> {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.session));
        let request = request.header("Content-Type", "application/json");
        let text = body.map(Value::to_string).unwrap_or_default();
        let mut response = self.agent.run(request.body(text).expect("a sound request")).expect("the driver answers");
        let text = response.body_mut().read_to_string().expect("a whole body");
        let mut answer: Value = serde_json::from_str(&text).expect("JSON");
        let value = answer["value"].take();
        match value["error"].as_str() {
            Some(error) => Err(Refused {
                error: error.to_owned(),
                message: value["message"].as_str().unwrap_or_default().to_owned(),
            }),
            None => Ok(value),
        }
    }

    #[track_caller]
    fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = (method == "POST").then_some(body);
        self.call(method, path, body).unwrap_or_else(|refused| panic!("{method} {path}: {refused}"))
    }

    /// Opens an address.
    #[track_caller]
    pub(crate) fn open(&self, url: &str) {
        self.done("POST", "/url", &json!({"url": url}));
    }

    pub(crate) fn reload(&self) {
        self.done("POST", "/refresh", &json!({}));
    }

    pub(crate) fn url(&self) -> String {
        self.done("GET", "/url", &Value::Null).as_str().expect("an address").to_owned()
    }

    /// The element a CSS selector finds, if it is there and can be seen.
    pub(crate) fn look(&self, selector: &str) -> Option<Element> {
        let found = self.call("POST", "/element", Some(&json!({"using": "css selector", "value": selector}))).ok()?;
        let element = Element(found[ELEMENT].as_str()?.to_owned());
        let shown = self.call("GET", &format!("/element/{}/displayed", element.0), None).ok()?;
        (shown == true).then_some(element)
    }

    /// Waits until a selector finds something that can be seen.
    #[track_caller]
    pub(crate) fn find(&self, selector: &str) -> Element {
        self.until(&format!("{selector} is shown"), || self.look(selector))
    }

    /// Waits for something, and tells what the page was like if it did not come.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until(what, look)));
        found.unwrap_or_else(|_| panic!("did not happen: {what}; at {}:\n{}", self.url(), self.text()))
    }

    /// Clicks what a selector finds, as soon as it can be clicked.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        self.until(&format!("{selector} can be clicked"), || {
            let element = self.look(selector)?;
            self.call("GET", &format!("/element/{}/enabled", element.0), None)
                .ok()
                .filter(|enabled| *enabled == true)?;
            self.call("POST", &format!("/element/{}/click", element.0), Some(&json!({}))).ok()
        });
    }

    /// Clicks the button or link with this text, below what `within` finds.
    #[track_caller]
    pub(crate) fn press(&self, within: &str, text: &str) {
        let xpath = format!(".//*[self::button or self::a or self::summary][normalize-space()='{text}']");
        self.until(&format!("{text} in {within} can be clicked"), || {
            let around = self.look(within)?;
            let body = json!({"using": "xpath", "value": xpath});
            let found = self.call("POST", &format!("/element/{}/element", around.0), Some(&body)).ok()?;
            self.call("POST", &format!("/element/{}/click", found[ELEMENT].as_str()?), Some(&json!({}))).ok()
        });
    }

    /// Types into what a selector finds, in place of what is there.
    #[track_caller]
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        let keys = format!("{CONTROL}a{CONTROL}{BACKSPACE}{text}");
        self.done("POST", &format!("/element/{}/value", element.0), &json!({"text": keys}));
    }

    /// Chooses an option by its value.
    #[track_caller]
    pub(crate) fn choose(&self, selector: &str, value: &str) {
        self.click(&format!("{selector} option[value='{value}']"));
    }

    /// Presses keys, one after another, wherever the focus is.
    #[track_caller]
    pub(crate) fn keys(&self, keys: &[&str]) {
        let presses = keys
            .iter()
            .flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]);
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": presses.collect::<Vec<_>>()}]});
        self.done("POST", "/actions", &actions);
    }

    /// What can be read of an element.
    #[track_caller]
    pub(crate) fn text_of(&self, selector: &str) -> String {
        let read = |element: Element| self.call("GET", &format!("/element/{}/text", element.0), None).ok();
        let text = self.until(&format!("{selector} has a text"), || read(self.look(selector)?));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// What can be read of the page.
    pub(crate) fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element's text has something in it.
    #[track_caller]
    pub(crate) fn says(&self, selector: &str, text: &str) {
        self.until(&format!("{selector} says {text:?}"), || {
            let element = self.look(selector)?;
            let found = self.call("GET", &format!("/element/{}/text", element.0), None).ok()?;
            found.as_str()?.contains(text).then_some(())
        });
    }

    /// Runs a script in the page.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.done("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// A command of the browser's own protocol.
    #[track_caller]
    pub(crate) fn devtools(&self, command: &str, params: &Value) -> Value {
        self.done("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": params}))
    }

    /// The size of the window's inside; a phone's has touch and its own scale.
    pub(crate) fn viewport(&self, width: u32, height: u32, phone: bool) {
        let scale = if phone { 2 } else { 1 };
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// What the system is said to prefer.
    pub(crate) fn prefers(&self, scheme: &str) {
        let wanted = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &wanted);
    }

    /// What the browser complained of since the last call: errors and warnings of scripts and of the page's policy. That an answer
    /// was no success is not among it: the console asks what it may.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let entries = self.done("POST", "/se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().cloned().unwrap_or_default();
        let told = entries.into_iter().filter(|entry| entry["source"] != "network" && entry["level"] != "INFO");
        told.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.call("DELETE", "", None));
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
