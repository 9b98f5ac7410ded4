//! Gateways: cards, parameters, tariffs by time of day, exceptions, firmware, sockets out of reach.

use std::net::Ipv4Addr;

use chargegate::protocol::Hex;
use chargegate::protocol::bkv::body::{Body, Level, Period, SocketEntry, Start};
use chargegate::protocol::bkv::clock::TimeOfDay;
use chargegate::protocol::bkv::command::{CONTROL, NETWORK, sub};
use chargegate::protocol::bkv::encode::{self, CardTerms, FeeOrder, PowerOrder};
use chargegate::protocol::bkv::packet::{FeeTier, PacketHeader, Params};
use chargegate::protocol::bkv::{GatewayId, HoleStatus};

use super::bkv::gateway;
use super::*;
use crate::device::bkv::{Fault, Options, QueryReply, SwipeState, Trouble};
use crate::device::ledger::{CardNumber, Reference, State};

const CARD: [u8; 6] = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12];

impl Wire<BkvDevice> {
    /// Sends what `write` writes.
    fn command(&mut self, write: impl FnOnce(&mut Vec<u8>, GatewayId)) {
        self.sent.clear();
        let mut frame = Vec::new();
        write(&mut frame, self.device.gateway_id());
        self.receive(&frame);
    }

    /// Swipes the card, and gives the business number that was sent.
    fn swipe(&mut self, socket: u8, hole: u8) -> u16 {
        self.sent.clear();
        assert!(self.device.swipe(self.now_us, CARD, socket, hole));
        self.device.poll_output(&mut self.sent);
        let swipes = self.bodies(|frame, body| match body {
            Body::CardSwipe(_, swipe) => {
                assert_eq!((frame.sequence, swipe.card, swipe.socket, swipe.hole), (0, Hex(CARD), socket, hole));
                Some(swipe.business_no)
            }
            _ => None,
        });
        swipes[0]
    }

    /// Sends an order for a card; the result of its confirmation.
    fn card_order(&mut self, business_no: u16, terms: CardTerms<'_>) -> Option<u8> {
        self.command(|out, id| encode::card_order(out, id, 55, (0, 1), business_no, terms));
        let confirms = self.bodies(|frame, body| match body {
            Body::CardConfirm(_, confirm) => {
                assert_eq!(frame.sequence, 55, "copied");
                Some(confirm.result)
            }
            _ => None,
        });
        assert!(confirms.len() < 2);
        confirms.first().copied()
    }

    fn state(&self) -> SwipeState {
        self.device.last_swipe(0, 1).unwrap().state
    }
}

#[test]
fn a_card_charges_after_its_order() {
    let mut wire = gateway(0);
    let business_no = wire.swipe(0, 1);
    assert!(!wire.device.swipe(wire.now_us, CARD, 0, 1), "the hole waits");
    assert!(wire.device.swipe(wire.now_us, CARD, 0, 0), "the other does not");
    assert_eq!(wire.card_order(business_no + 9, CardTerms::Time(10)), Some(0), "nobody swiped for that");
    assert_eq!(wire.card_order(business_no, CardTerms::Time(10)), Some(1));
    assert_eq!(wire.card_order(business_no, CardTerms::Time(10)), Some(1), "confirmed again, started once");
    assert_eq!((wire.state(), wire.device.ledger().begun()), (SwipeState::Charging, 1));
    wire.pass(SECOND_US);
    assert_eq!(wire.pushed()[1], (0, HoleStatus(0x90), business_no));
    wire.pass(600 * SECOND_US);
    let ends = wire.bodies(|_, body| match body {
        Body::CardEnd(_, end) => {
            Some((end.card, end.mode, end.block.business_no, end.block.charged_min, end.usage.spent_cent))
        }
        _ => None,
    });
    assert_eq!(ends, [(Hex(CARD), 1, business_no, 10, 0)]);
    wire.acknowledge(0);
    let entry = wire.device.ledger().find(Reference::Business(business_no)).unwrap();
    assert_eq!(entry.start, ledger::Start::Card(CardNumber::Printed(CARD)));
    assert_eq!((entry.port_no, entry.duration_s, entry.state), (2, 600, State::Acknowledged));
    assert_ne!(wire.start(&Start::time(0, 1, 1)).business_no, business_no);
}

#[test]
fn cards_by_energy_and_power_tiers() {
    let mut wire = gateway(0);
    let business_no = wire.swipe(0, 1);
    assert_eq!(wire.card_order(business_no, CardTerms::Energy(100)), Some(1));
    wire.pass(7200 * SECOND_US);
    let ends = wire.bodies(|_, body| match body {
        Body::CardEnd(_, end) => Some((end.mode, end.block.energy_wh)),
        _ => None,
    });
    assert_eq!(ends[0], (2, 100));

    let mut wire = gateway(0);
    let business_no = wire.swipe(0, 1);
    let levels = [Level { power_dw: 6000, price_cent: 25, minutes: 60 }];
    assert_eq!(wire.card_order(business_no, CardTerms::Power(50, &levels)), Some(1));
    wire.pass(7200 * SECOND_US);
    let ends = wire.bodies(|_, body| match body {
        Body::CardEnd(_, end) => {
            let minutes: Vec<u16> = end.usage.level_minutes.collect();
            Some((end.mode, end.block.charged_min, end.usage.spent_cent, minutes))
        }
        _ => None,
    });
    assert_eq!(ends, [(3, 120, 50, vec![120])]);
    assert_eq!(wire.device.ledger().last().unwrap().spent_cent, Some(50));
}

#[test]
fn refused_failed_and_forgotten_cards() {
    let mut wire = gateway(0);
    let business_no = wire.swipe(0, 1);
    assert_eq!(wire.card_order(business_no, CardTerms::Refused), None);
    assert_eq!(wire.state(), SwipeState::Refused);

    let business_no = wire.swipe(0, 1);
    assert_eq!(wire.start(&Start::time(0, 1, 10)).result, 1, "somebody was quicker");
    assert_eq!(wire.card_order(business_no, CardTerms::Time(10)), Some(0));
    assert_eq!(wire.state(), SwipeState::Failed);

    let mut wire = gateway(0);
    let business_no = wire.swipe(0, 1);
    wire.pass(15 * SECOND_US);
    assert_eq!(wire.state(), SwipeState::Unanswered);
    assert_eq!(wire.card_order(business_no, CardTerms::Time(10)), Some(0), "too late");
    assert_eq!(wire.device.ledger().begun(), 0);
    wire.device.disconnected(wire.now_us);
    assert!(!wire.device.swipe(wire.now_us, CARD, 0, 1));
}

#[test]
fn the_unit_of_a_cards_time_is_an_option() {
    let options = Options { card_time_in_seconds: true, ..Options::default() };
    let mut wire = Wire::connect(BkvDevice::with_options(3, 0, Behaviour::default(), options));
    wire.pass(3 * SECOND_US);
    let business_no = wire.swipe(0, 1);
    assert_eq!(wire.card_order(business_no, CardTerms::Time(48_000)), Some(1));
    wire.pass(48_000 * SECOND_US);
    assert_eq!(wire.device.ledger().last().unwrap().duration_s, 48_000);
}

#[test]
fn a_balance_is_asked_for() {
    let mut wire = gateway(0);
    assert!(wire.device.ask_balance(wire.now_us, CARD, 0, 1));
    wire.device.poll_output(&mut wire.sent);
    let asked = wire.bodies(|_, body| match body {
        Body::BalanceQuery(_, query) => Some((query.socket, query.hole, query.card)),
        _ => None,
    });
    assert_eq!(asked, [(0, 1, Hex(CARD))]);
    wire.command(|out, id| encode::balance_reply(out, id, 9, (0, 1), CARD, 5001));
    assert_eq!(wire.device.last_balance(), Some((CARD, 5001)));
}

#[test]
fn parameters_belong_to_a_socket() {
    let mut wire = gateway(2);
    let set = Params { max_charge_min: Some(5), no_load_delay_s: Some(30), ..Params::default() };
    let mut acks = Vec::new();
    for socket in [2, 3] {
        wire.command(|out, id| encode::param_set(out, id, 7, socket, &set));
        acks.extend(wire.bodies(|frame, body| match body {
            Body::PacketReply(reply) => Some((frame.sequence, reply.socket, reply.ack)),
            _ => None,
        }));
    }
    assert_eq!(acks, [(7, Some(2), 1), (7, Some(3), 0)], "there is no socket 3");
    let mut values = Vec::new();
    for socket in 1..=3 {
        wire.command(|out, id| encode::param_query(out, id, 8, socket));
        values.extend(wire.bodies(|_, body| match body {
            Body::PacketReply(reply) => Some((reply.ack, reply.params.max_charge_min, reply.params.power_limit_dw)),
            _ => None,
        }));
    }
    assert_eq!(values, [(1, Some(600), Some(10_000)), (1, Some(5), Some(10_000)), (0, None, None)]);
    assert_eq!(wire.start(&Start::energy(2, 0, 60_000)).result, 1);
    wire.pass(301 * SECOND_US);
    assert_eq!(wire.device.ledger().last().unwrap().end, Some(charge::End::DurationMax));
}

#[test]
fn a_voice_window_for_one_socket_or_all() {
    let mut wire = gateway(2);
    let time = |hour, minute| TimeOfDay { hour, minute };
    let periods = [Period { start: time(22, 0), end: time(23, 59) }, Period { start: time(0, 0), end: time(7, 0) }];
    let mut replies = Vec::new();
    for socket in [1, 9, 254] {
        wire.command(|out, id| encode::voice_set(out, id, 3, (socket, 1), false, socket == 254, &periods));
        replies.extend(wire.bodies(|_, body| match body {
            Body::VoiceReply(_, reply) => Some((reply.socket, reply.result)),
            _ => None,
        }));
        assert_eq!(wire.device.voice(1).unwrap().periods, periods);
        assert_eq!(wire.device.voice(2).is_some(), socket == 254);
    }
    assert_eq!(replies, [(1, 1), (9, 0), (254, 1)]);
    assert!(wire.device.voice(1).unwrap().voice);
}

#[test]
fn fees_are_split_by_the_time_of_day() {
    let mut wire = gateway(0);
    // 2020-07-30 07:30:00 at UTC+8.
    wire.command(|out, id| encode::heartbeat_reply(out, id, 1_596_065_400));
    let tier = |hour, minute, electricity_cent_per_kwh, service_cent_per_kwh| FeeTier {
        end: TimeOfDay { hour, minute },
        electricity_cent_per_kwh,
        service_cent_per_kwh,
    };
    let tiers = [tier(8, 0, 30, 10), tier(23, 59, 60, 20)];
    let order = FeeOrder { socket: 0, hole: 0, on: true, paid_amount_cent: 5000, service_fee_mode: 1, tiers: &tiers };
    wire.command(|out, id| encode::fee_start(out, id, 6, &order));
    let started = wire.bodies(|_, body| match body {
        Body::PacketReply(reply) => Some((reply.ack, reply.business_no)),
        _ => None,
    });
    assert_eq!(started, [(1, Some(1))]);
    wire.pass(3600 * SECOND_US);
    let stop = FeeOrder { on: false, ..order };
    wire.command(|out, id| encode::fee_start(out, id, 7, &stop));
    wire.pass(0);
    let ends = wire.bodies(|_, body| match body {
        Body::FeeEnd(end) => Some((end.report, end.tier_results.to_vec())),
        _ => None,
    });
    let [(report, results)] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!((results.len(), &results[..2], &results[6..8]), (12, &[0, 30][..], &[0, 30][..]));
    let wh = |at: usize| u32::from_be_bytes(results[at..at + 4].try_into().unwrap());
    assert_eq!(wh(2) + wh(8), u32::from(report.energy_wh));
    assert!(wh(2) > 0 && wh(8).abs_diff(wh(2)) <= 1);
    assert_eq!(u32::from(report.electricity_fee_cent.unwrap()), (wh(2) * 30 + wh(8) * 60) / 1000);
    assert_eq!(u32::from(report.service_fee_cent.unwrap()), (wh(2) * 10 + wh(8) * 20) / 1000);
    let spent = report.electricity_fee_cent.unwrap() + report.service_fee_cent.unwrap();
    assert_eq!(wire.device.ledger().last().unwrap().spent_cent, Some(u32::from(spent)));
}

#[test]
fn power_tiers_under_either_command_word() {
    for command in [CONTROL, NETWORK] {
        let mut wire = gateway(0);
        let levels = [Level { power_dw: 6000, price_cent: 25, minutes: 60 }];
        let order = PowerOrder { socket: 0, hole: 0, on: true, paid_cent: 25, levels: &levels };
        wire.command(|out, id| encode::power_start(out, id, 6, command, &order));
        assert_eq!(wire.device.hole_status(0, 0), Some(HoleStatus(0x90)));
        wire.command(|out, id| encode::power_start(out, id, 7, command, &PowerOrder::stop(0, 0)));
        assert_eq!(wire.device.hole_status(0, 0), Some(HoleStatus(0x80)));
    }
}

#[test]
fn exceptions_repeat_until_acknowledged() {
    let mut wire = gateway(2);
    assert!(wire.device.exception(wire.now_us, Trouble::of_socket(2, 8)));
    assert!(wire.device.exception(wire.now_us, Trouble::of_socket(1, 3)));
    wire.device.poll_output(&mut wire.sent);
    let seen = |wire: &mut Wire<BkvDevice>| {
        wire.bodies(|frame, body| match body {
            Body::Exception(exception) => {
                assert_eq!(exception.statuses, [Some(HoleStatus(0x80)); 2]);
                Some((frame.sequence, exception.socket, exception.states[0], exception.reasons[0]))
            }
            _ => None,
        })
    };
    assert_eq!(seen(&mut wire), [(0, 2, Some(1), Some(8))], "one at a time");
    wire.pass(21 * SECOND_US);
    assert_eq!(seen(&mut wire).len(), 2);
    let ack = |wire: &mut Wire<BkvDevice>, socket| {
        wire.command(|out, id| encode::exception_ack(out, id, PacketHeader::new(0, id), socket, true));
        wire.pass(0);
    };
    ack(&mut wire, 1);
    assert_eq!(seen(&mut wire), [], "that is another's");
    ack(&mut wire, 2);
    assert_eq!(seen(&mut wire), [(0, 1, Some(1), Some(3))]);
    wire.pass(60 * SECOND_US);
    assert_eq!(seen(&mut wire).len(), 2, "three in all");
    let events = wire.events();
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Sent(Request::Exception))), 6);
    assert_eq!(count(|event| matches!(event, Event::Answered(Request::Exception, _))), 1);
    assert_eq!(count(|event| matches!(event, Event::Unanswered(Request::Exception))), 5);
}

#[test]
fn a_download_shows_in_the_heartbeat() {
    let firmware = |wire: &mut Wire<BkvDevice>| {
        let names = wire.bodies(|_, body| match body {
            Body::Heartbeat(heartbeat) => Some(heartbeat.fw.to_string()),
            _ => None,
        });
        names.last().cloned()
    };
    let mut wire = gateway(0);
    assert_eq!(firmware(&mut wire).as_deref(), Some("sim1.0"));
    wire.device.set_fault(Fault::DownloadFails);
    let ip = Ipv4Addr::new(101, 37, 145, 162);
    for (minute, fails) in [(0, true), (1, false)] {
        wire.command(|out, id| encode::ota(out, id, 4, ip, 21, "gw_v2.bin"));
        assert!(wire.sent.is_empty(), "no reply is described");
        let download = wire.device.last_download().unwrap();
        assert_eq!((download.ftp_ip, download.ftp_port, &download.file[..]), (ip, 21, &b"gw_v2.bin"[..]));
        wire.pass(20 * SECOND_US);
        assert_eq!(wire.device.poll_close(), !fails, "attempt {minute}");
    }
    wire.reconnect();
    wire.pass(2 * SECOND_US);
    assert_eq!(firmware(&mut wire).as_deref(), Some("sim1.1"));
}

#[test]
fn a_socket_out_of_reach_reports_when_it_is_back() {
    let mut wire = gateway(2);
    assert_eq!(wire.start(&Start::time(1, 0, 1)).result, 1);
    wire.device.set_online(wire.now_us, 1, false);
    wire.pass(0);
    assert!(wire.pushed().contains(&(1, HoleStatus(0), 1)), "told at once");
    assert_eq!(wire.start(&Start::time(1, 1, 1)).result, 0, "it does not hear");
    assert_eq!(wire.start(&Start::time(2, 0, 2)).result, 1);
    wire.pass(121 * SECOND_US);
    let sockets = |wire: &mut Wire<BkvDevice>| wire.bodies(|_, body| Some(body.end_report()?.socket));
    assert_eq!(sockets(&mut wire), [2], "the other's report does not wait");
    wire.acknowledge(2);
    assert_eq!(wire.device.unsettled(), 1);
    wire.device.set_online(wire.now_us, 1, true);
    wire.pass(0);
    assert_eq!(sockets(&mut wire), [1]);
    wire.acknowledge(1);
    assert_eq!(wire.device.ledger().count(State::Acknowledged), 2);
}

#[test]
fn a_network_list_with_bad_numbers_is_refused() {
    let mut wire = gateway(2);
    let entry = |socket| SocketEntry { socket, mac: Hex([1, 2, 3, 4, 5, socket]) };
    let mut results = Vec::new();
    let mut send = |write: &dyn Fn(&mut Vec<u8>, GatewayId)| {
        wire.command(write);
        results.extend(wire.bodies(|_, body| match body {
            Body::NetworkResult(_, result) => Some(result.result),
            _ => None,
        }));
    };
    send(&|out, id| encode::socket_list(out, id, 1, 16, &[entry(1)]));
    send(&|out, id| encode::socket_list(out, id, 1, 3, &[entry(1), entry(251)]));
    send(&|out, id| encode::socket_add(out, id, 1, &entry(0)));
    send(&|out, id| encode::socket_delete(out, id, 1, 7));
    send(&|out, id| encode::socket_add(out, id, 1, &entry(250)));
    send(&|out, id| encode::socket_delete(out, id, 1, 2));
    assert_eq!(results, [0, 0, 0, 0, 1, 1]);
    let sockets: Vec<_> = wire.device.sockets().collect();
    assert_eq!(sockets, [(1, [0; 6]), (250, [1, 2, 3, 4, 5, 250])]);
    let all: Vec<_> = (1..=250).map(entry).collect();
    wire.command(|out, id| encode::socket_list(out, id, 2, 15, &all));
    assert_eq!(wire.device.sockets().count(), 250);
    assert_eq!(wire.start(&Start::time(250, 1, 1)).result, 1);
}

#[test]
fn a_query_is_answered_as_the_options_say() {
    for (query_reply, kind) in [(QueryReply::Sub1C, "1C"), (QueryReply::Sub1D, "1C"), (QueryReply::Push, "1017")] {
        let options = Options { query_reply, ..Options::default() };
        let mut wire = Wire::connect(BkvDevice::with_options(3, 0, Behaviour::default(), options));
        wire.pass(3 * SECOND_US);
        wire.command(|out, id| encode::socket_query(out, id, 3, 0));
        let sent = wire.sent.clone();
        assert_eq!(wire.kinds(), [kind]);
        wire.sent = sent;
        let subs = wire.bodies(|_, body| match body {
            Body::SocketReply(inner, _) => Some(inner.sub),
            _ => None,
        });
        let expected: &[u8] = match query_reply {
            QueryReply::Sub1C => &[sub::SOCKET_REPLY],
            QueryReply::Sub1D => &[sub::SOCKET_QUERY],
            QueryReply::Push => &[],
        };
        assert_eq!(subs, expected);
    }
}

#[test]
fn faults_happen_once() {
    let mut wire = gateway(0);
    wire.device.set_fault(Fault::Refused(0x07));
    wire.device.set_fault(Fault::ReplyLost(0x1007));
    assert_eq!(wire.start(&Start::time(0, 0, 1)).result, 0);
    assert_eq!(wire.start(&Start::time(0, 0, 1)).result, 1);
    let order = FeeOrder { socket: 0, hole: 1, on: true, paid_amount_cent: 1, service_fee_mode: 1, tiers: &[] };
    wire.command(|out, id| encode::fee_start(out, id, 6, &order));
    assert!(wire.sent.is_empty());
    assert_eq!(wire.device.hole_status(0, 1), Some(HoleStatus(0x90)), "it charges all the same");
    wire.device.end_by(wire.now_us, 0, 1, HoleStatus(0x94));
    assert_eq!(wire.device.ledger().last().unwrap().end_code, Some(0x94));
}

#[test]
fn repeated_end_reports_are_measured_anew() {
    let mut wire = gateway(0);
    wire.start(&Start::time(0, 0, 1));
    wire.pass(75 * SECOND_US);
    let power = wire.bodies(|_, body| body.end_report().and_then(|report| report.power_dw));
    assert_eq!(power.len(), 2);
    assert_ne!(power[0], power[1]);
}
