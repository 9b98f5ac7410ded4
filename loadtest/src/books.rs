//! Whether the API knows what the devices know: every order and every record, to the last Wh.
//!
//! Each simulated device keeps a ledger of its charges in the rounding of its wire. At the end of a run it is compared with the
//! orders that the API lists:
//!
//! | the device says | the API must say |
//! |---|---|
//! | acknowledged, ended by itself | completed; or why it had given up the order before; same seconds, Wh and cents |
//! | acknowledged, stopped | stopped or cancelled; same seconds, Wh and cents |
//! | acknowledged, fault | failed or completed; same seconds, Wh and cents |
//! | ended, not acknowledged | anything; unsettled if it ended before the drain |
//! | running | not ended |
//! | nothing | neither charging nor completed, and nothing that still waits to begin |
//!
//! A charge that began without the API, by a card, has an order with just its totals on its port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chargegate::signature::SignedRequest;
use chargegate::time::{Rfc3339, unix_ms_of_rfc3339};
use serde::{Deserialize, Serialize};

use crate::asker::Ordered;
use crate::device::charge::End;
use crate::device::ledger::{Entry, Reference, State};
use crate::measure::REMARKS_MAX;

const PAGE: u64 = 200;
/// Orders of one time span are read page by page if they are no more than this; else the span is halved.
const SPAN_ORDERS_MAX: u64 = 4_000;
/// An order this young may wait for its device.
const YOUNG_MS: i64 = 40_000;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Details of records without an acknowledgement, which come by thousands from a gateway that is too slow; the other places are for
/// orders that are wrong.
const UNSETTLED_DETAILS_MAX: usize = REMARKS_MAX / 4;

/// How a charge ended at its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It has not.
    Not,
    /// What was ordered is used up, the battery is full, nothing is plugged in, somebody pulled the plug.
    ByItself,
    /// The server said so.
    Stopped,
    /// The device cut the power.
    Fault,
}

/// A charge as its device knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Charged {
    /// The order's number; `None`: a BKV business number or a number of the device's own.
    pub order_no: Option<String>,
    /// BKV.
    pub business_no: Option<u16>,
    /// From 1.
    pub port_no: u16,
    /// How it ended.
    pub ended: Ended,
    /// Whether the server acknowledged its record.
    pub acknowledged: bool,
    /// Whether it ended before the drain began.
    pub due: bool,
    /// Seconds in the record.
    pub duration_s: u32,
    /// Wh in the record.
    pub energy_wh: u32,
    /// 0.01 yuan in the record.
    pub spent_cent: Option<u32>,
}

impl Charged {
    /// What an entry of a ledger says; charges that ended by `drain_us` were to be settled.
    pub fn of(entry: &Entry, drain_us: u64) -> Self {
        let (order_no, business_no) = match entry.reference {
            Reference::Order(bytes) => {
                let text = std::str::from_utf8(&bytes).ok();
                (text.filter(|text| text.bytes().all(|byte| byte.is_ascii_alphanumeric())).map(str::to_owned), None)
            }
            Reference::Business(number) => (None, Some(number)),
        };
        Self {
            order_no,
            business_no,
            port_no: entry.port_no,
            ended: match entry.end {
                None => Ended::Not,
                Some(End::Stopped) => Ended::Stopped,
                Some(End::Fault(_)) => Ended::Fault,
                Some(_) => Ended::ByItself,
            },
            // A record that was erased with the device's storage is nobody's debt.
            acknowledged: entry.state == State::Acknowledged,
            due: entry.state == State::Unacknowledged && entry.ended_us.is_some_and(|ended_us| ended_us <= drain_us),
            duration_s: entry.duration_s,
            energy_wh: entry.energy_wh,
            spent_cent: entry.spent_cent,
        }
    }
}

/// The charges of a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Book {
    /// As the API knows it.
    pub device_id: String,
    /// Oldest first.
    pub charges: Vec<Charged>,
}

/// An order as the API shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct ApiOrder {
    order_no: String,
    device_id: String,
    port_no: u16,
    status: u8,
    status_text: String,
    duration_seconds: Option<u32>,
    energy_wh: Option<u32>,
    amount_cent: Option<u32>,
    business_no: Option<u16>,
    failure_reason: Option<String>,
    created_at: String,
}

impl ApiOrder {
    const fn is_final(&self) -> bool {
        matches!(self.status, 3..=7)
    }
}

/// What the comparison found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Orders that the API listed since the run began.
    pub listed: u64,
    /// Orders and records that were compared.
    pub checked: u64,
    /// Those that do not agree.
    pub wrong: u64,
    /// Records that ended before the drain and were never acknowledged.
    pub unsettled: u64,
    /// Why nothing was compared.
    pub skipped: Option<String>,
    /// The first of those that do not agree.
    pub details: Vec<String>,
}

impl Verdict {
    fn wrong(&mut self, detail: impl FnOnce() -> String) {
        self.wrong += 1;
        if self.details.len() < REMARKS_MAX {
            self.details.push(detail());
        }
    }

    /// Counts records that are not settled; needs no API.
    pub fn count_unsettled(&mut self, books: &[Book]) {
        for book in books {
            for charge in book.charges.iter().filter(|charge| charge.due) {
                self.unsettled += 1;
                if self.details.len() < UNSETTLED_DETAILS_MAX {
                    self.details.push(format!("{} port {}: record not acknowledged", book.device_id, charge.port_no));
                }
            }
        }
    }

    /// Compares what was ordered and what the devices know with what the API lists; `now_ms` is Unix time.
    pub fn compare(&mut self, ordered: &[Ordered], books: &[Book], listed: &[ApiOrder], now_ms: i64) {
        self.listed = u64::try_from(listed.len()).unwrap_or(u64::MAX);
        let by_no: HashMap<&str, &ApiOrder> = listed.iter().map(|order| (order.order_no.as_str(), order)).collect();
        let mut charges: HashMap<(&str, u16), Vec<(&Charged, bool)>> = HashMap::new();
        for book in books {
            for charge in &book.charges {
                charges.entry((&book.device_id, charge.port_no)).or_default().push((charge, false));
            }
        }
        // First whatever has a name on both sides.
        let mut named: HashMap<&str, &Charged> = HashMap::new();
        for order in listed {
            let of_port = charges.get_mut(&(order.device_id.as_str(), order.port_no));
            let is_it = |charge: &Charged| match charge.business_no {
                Some(number) => order.business_no == Some(number),
                None => charge.order_no.as_deref() == Some(&order.order_no),
            };
            if let Some((charge, taken)) =
                of_port.into_iter().flatten().rev().find(|(charge, taken)| !taken && is_it(charge))
            {
                *taken = true;
                named.insert(&order.order_no, charge);
            }
        }
        for Ordered { order_no, device_id, port_no } in ordered {
            self.checked += 1;
            match by_no.get(order_no.as_str()) {
                None => self.wrong(|| format!("order {order_no} of {device_id} was accepted and is not there")),
                Some(order) if order.device_id != *device_id || order.port_no != *port_no => {
                    self.wrong(|| format!("order {order_no} is on {} port {}", order.device_id, order.port_no));
                }
                Some(order) => self.judge(order, named.get(order_no.as_str()).copied(), now_ms),
            }
        }
        // Then what began at the devices: an order of just these totals, each for one record.
        let ours: std::collections::HashSet<&str> = ordered.iter().map(|ordered| ordered.order_no.as_str()).collect();
        let mut nameless: HashMap<(&str, u16, u32, u32), u64> = HashMap::new();
        for order in listed.iter().filter(|order| !ours.contains(order.order_no.as_str()) && order.is_final()) {
            match named.get(order.order_no.as_str()) {
                Some(charge) => {
                    self.checked += 1;
                    self.judge(order, Some(charge), now_ms);
                }
                None => {
                    let totals = (order.duration_seconds.unwrap_or_default(), order.energy_wh.unwrap_or_default());
                    *nameless.entry((&order.device_id, order.port_no, totals.0, totals.1)).or_default() += 1;
                }
            }
        }
        for ((device_id, port_no), charges) in charges {
            for (charge, _) in charges.iter().filter(|(charge, taken)| !taken && charge.acknowledged) {
                self.checked += 1;
                let key = (device_id, port_no, charge.duration_s, charge.energy_wh);
                match nameless.get_mut(&key).filter(|count| **count > 0) {
                    Some(count) => *count -= 1,
                    None => self.wrong(|| {
                        format!(
                            "{device_id} port {port_no}: {} s and {} Wh were acknowledged, and no order has them",
                            charge.duration_s, charge.energy_wh
                        )
                    }),
                }
            }
        }
    }

    fn judge(&mut self, order: &ApiOrder, charge: Option<&Charged>, now_ms: i64) {
        let ApiOrder { order_no, device_id, status, status_text, .. } = order;
        // Given up for a reason of its own before the device had its say.
        let given_up = matches!(status, 6 | 7) && order.failure_reason.is_some();
        let Some(charge) = charge else {
            let age_ms = unix_ms_of_rfc3339(&order.created_at).map_or(i64::MAX, |created_ms| now_ms - created_ms);
            if matches!(status, 2 | 3) || (*status < 2 && age_ms > YOUNG_MS) {
                self.wrong(|| {
                    format!("order {order_no} of {device_id} is {status_text}, and the device never charged it")
                });
            }
            return;
        };
        let fits = match charge.ended {
            Ended::Not => !order.is_final() || given_up,
            _ if !charge.acknowledged => true,
            Ended::ByItself => matches!(status, 3..=5) || given_up,
            Ended::Stopped => matches!(status, 4 | 5) || given_up,
            Ended::Fault => matches!(status, 3..=6) || given_up,
        };
        if !fits {
            return self
                .wrong(|| format!("order {order_no} of {device_id} is {status_text}, the device says {charge:?}"));
        }
        let same = order.duration_seconds == Some(charge.duration_s)
            && order.energy_wh == Some(charge.energy_wh)
            && (charge.spent_cent.is_none() || order.amount_cent == charge.spent_cent);
        if charge.acknowledged && !same {
            self.wrong(|| {
                format!(
                    "order {order_no} of {device_id} has {:?} s, {:?} Wh, {:?} cents, the device says {charge:?}",
                    order.duration_seconds, order.energy_wh, order.amount_cent
                )
            });
        }
    }
}

#[derive(Deserialize)]
struct Page {
    data: PageData,
}

#[derive(Deserialize)]
struct PageData {
    items: Vec<ApiOrder>,
    total: u64,
}

/// Reads orders from the API.
pub struct Reader {
    agent: ureq::Agent,
    base: SocketAddr,
    key: String,
    secret: Option<String>,
    nonces: u64,
}

impl Reader {
    /// Reads from the instance at `base`.
    pub fn new(base: SocketAddr, key: String, secret: Option<String>) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Self { agent: config.into(), base, key, secret, nonces: 0 }
    }

    /// How many orders were created from one time to another, Unix ms.
    ///
    /// # Errors
    /// The API does not answer, or not with a list.
    pub fn count(&mut self, from_ms: i64, to_ms: i64) -> anyhow::Result<u64> {
        Ok(self.page(from_ms, to_ms, 1, 1)?.total)
    }

    /// All of them.
    ///
    /// # Errors
    /// The API does not answer, or not with a list.
    pub fn orders(&mut self, from_ms: i64, to_ms: i64) -> anyhow::Result<Vec<ApiOrder>> {
        let first = self.page(from_ms, to_ms, 1, PAGE)?;
        // Pages far behind are slow: where there are many, time is split, not counted through.
        if first.total > SPAN_ORDERS_MAX && to_ms - from_ms > 1 {
            let middle_ms = from_ms + (to_ms - from_ms) / 2;
            let mut orders = self.orders(from_ms, middle_ms)?;
            orders.append(&mut self.orders(middle_ms, to_ms)?);
            return Ok(orders);
        }
        let mut orders = first.items;
        for page in 2..=first.total.div_ceil(PAGE) {
            orders.append(&mut self.page(from_ms, to_ms, page, PAGE)?.items);
        }
        Ok(orders)
    }

    fn page(&mut self, from_ms: i64, to_ms: i64, page: u64, size: u64) -> anyhow::Result<PageData> {
        let (from, to) = (Rfc3339(from_ms), Rfc3339(to_ms));
        let path = format!("/api/v1/third/orders?created_from={from}&created_to={to}&page={page}&size={size}");
        let mut request = self.agent.get(format!("http://{}{path}", self.base)).header("X-Api-Key", &self.key);
        if let Some(secret) = &self.secret {
            self.nonces += 1;
            let timestamp = (unix_ms() / 1000).to_string();
            let nonce = format!("books-{}-{timestamp}-{}", std::process::id(), self.nonces);
            let signed = SignedRequest { method: "GET", path: &path, timestamp: &timestamp, nonce: &nonce, body: b"" };
            request = request
                .header("X-Signature", signed.sign(secret))
                .header("X-Timestamp", &timestamp)
                .header("X-Nonce", &nonce);
        }
        let mut response = request.call().context("list of orders")?;
        if response.status() != 200 {
            let body = response.body_mut().read_to_string().unwrap_or_default();
            bail!("list of orders: {} {body}", response.status());
        }
        let page: Page = response.body_mut().read_json().context("list of orders")?;
        Ok(page.data)
    }
}

/// Unix time in milliseconds.
#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
pub fn unix_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(order_no: &str, status: u8, totals: Option<(u32, u32)>) -> ApiOrder {
        ApiOrder {
            order_no: order_no.to_owned(),
            device_id: "d".to_owned(),
            port_no: 1,
            status,
            status_text: status.to_string(),
            duration_seconds: totals.map(|totals| totals.0),
            energy_wh: totals.map(|totals| totals.1),
            amount_cent: None,
            business_no: None,
            failure_reason: None,
            created_at: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    fn charge(order_no: Option<&str>, ended: Ended, acknowledged: bool) -> Charged {
        Charged {
            order_no: order_no.map(str::to_owned),
            business_no: None,
            port_no: 1,
            ended,
            acknowledged,
            due: ended != Ended::Not && !acknowledged,
            duration_s: 60,
            energy_wh: 10,
            spent_cent: None,
        }
    }

    fn wrong(ordered: &[&str], charges: Vec<Charged>, listed: &[ApiOrder]) -> (u64, u64) {
        let of = |order_no: &&str| Ordered { order_no: (*order_no).to_owned(), device_id: "d".to_owned(), port_no: 1 };
        let ordered: Vec<Ordered> = ordered.iter().map(of).collect();
        let mut verdict = Verdict::default();
        let books = [Book { device_id: "d".to_owned(), charges }];
        verdict.count_unsettled(&books);
        verdict.compare(&ordered, &books, listed, i64::MAX);
        assert_eq!(verdict.details.len() as u64, verdict.wrong + verdict.unsettled, "{verdict:?}");
        (verdict.wrong, verdict.unsettled)
    }

    #[test]
    fn books_agree_or_not() {
        let settled = || vec![charge(Some("A"), Ended::ByItself, true)];
        assert_eq!(wrong(&["A"], settled(), &[order("A", 3, Some((60, 10)))]), (0, 0));
        assert_eq!(wrong(&["A"], settled(), &[order("A", 3, Some((60, 20)))]), (1, 0), "another energy");
        assert_eq!(wrong(&["A"], settled(), &[order("A", 2, Some((60, 10)))]), (1, 0), "acknowledged and not ended");
        assert_eq!(wrong(&["A"], settled(), &[]), (2, 0), "neither the order nor the record");
        let stopped = || vec![charge(Some("A"), Ended::Stopped, true)];
        assert_eq!(wrong(&["A"], stopped(), &[order("A", 5, Some((60, 10)))]), (0, 0));
        assert_eq!(wrong(&["A"], stopped(), &[order("A", 3, Some((60, 10)))]), (1, 0));
        assert_eq!(wrong(&["A"], vec![charge(Some("A"), Ended::Not, false)], &[order("A", 2, None)]), (0, 0));
        assert_eq!(wrong(&["A"], vec![charge(Some("A"), Ended::Not, false)], &[order("A", 3, None)]), (1, 0));
        assert_eq!(wrong(&["A"], Vec::new(), &[order("A", 0, None)]), (1, 0), "nobody ever began it");
        assert_eq!(wrong(&["A"], Vec::new(), &[order("A", 7, None)]), (0, 0));
        assert_eq!(wrong(&["A"], vec![charge(Some("A"), Ended::ByItself, false)], &[order("A", 2, None)]), (0, 1));
    }

    #[test]
    fn each_record_without_the_api_has_an_order_of_its_own() {
        let offline = || charge(None, Ended::ByItself, true);
        let stored = |order_no| order(order_no, 3, Some((60, 10)));
        assert_eq!(wrong(&[], vec![offline(), offline()], &[stored("X"), stored("Y")]), (0, 0));
        assert_eq!(wrong(&[], vec![offline(), offline()], &[stored("X")]), (1, 0), "two records, one order");
    }
}
