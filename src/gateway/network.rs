//! The network list of a gateway: which sockets it shall know, and which command comes next until it does (integration guide V1.7,
//! sub-commands 08, 09 and 0A).
//!
//! ```text
//! replaced ─▶ 08 with as many as fit ─▶ 09 for each that did not        one command at a time:
//! added    ─▶ 09                                                        its answer says what comes next
//! removed  ─▶ 0A
//! ```
//!
//! Pure functions over plain values; the store keeps the rows and queues the commands they say.

use crate::model::{GatewayCall, NetworkSocket};

/// Sockets sent in one 08. The guide names no limit; this keeps the frame below 1 KiB. The others follow by 09.
pub const REFRESH_SOCKETS_MAX: usize = 128;

/// How far the gateway has taken a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketState {
    /// It shall be in the list.
    Desired,
    /// The gateway acknowledged that it is.
    Confirmed,
    /// It shall not be in the list any more; gone once the gateway acknowledged that.
    Removing,
}

impl SocketState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Desired, Self::Confirmed, Self::Removing];

    /// The word in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Confirmed => "confirmed",
            Self::Removing => "removing",
        }
    }
}

/// What is to be done about the list as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Refresh {
    /// Nothing.
    #[default]
    Done = 0,
    /// It is to be sent.
    Wanted = 1,
    /// It was sent, and the gateway did not take it. Sent again at the next bind.
    Failed = 2,
}

/// A socket of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// 1–250.
    pub socket: u8,
    /// As printed on the socket's back; `None`: only ever seen, never listed.
    pub mac: Option<[u8; 6]>,
    /// As printed on its front, what users scan.
    pub uid: Option<String>,
    /// How far the gateway has taken it.
    pub state: SocketState,
    /// Why the gateway did not take the last command for it.
    pub refused: Option<String>,
    /// Unix ms.
    pub confirmed_at: Option<i64>,
    /// Unix ms.
    pub updated_at: i64,
}

impl Listed {
    /// Whether it shall be in the list.
    pub fn is_wanted(&self) -> bool {
        self.state != SocketState::Removing
    }

    fn wire(&self) -> Option<NetworkSocket> {
        self.mac.filter(|_| self.is_wanted()).map(|mac| NetworkSocket { socket: self.socket, mac })
    }
}

/// A socket as a third party gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// 1–250.
    pub socket: u8,
    /// As printed on the socket's back.
    pub mac: [u8; 6],
    /// As printed on its front.
    pub uid: Option<String>,
}

/// The list of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkList {
    /// Radio channel 1–15; `None`: the whole list was never given.
    pub channel: Option<u8>,
    /// What is to be done about it as a whole.
    pub refresh: Refresh,
    /// By number.
    pub sockets: Vec<Listed>,
}

/// How a network command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The gateway took it.
    Ok,
    /// It did not, or said nothing; the word says which.
    No(&'static str),
}

/// Why a socket cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Taken {
    /// The number names another MAC.
    #[error("socket {0} is in the list with another mac")]
    Number(u8),
    /// The MAC is listed under another number.
    #[error("the mac is in the list as socket {0}")]
    Mac(u8),
}

impl NetworkList {
    /// Whether the gateway has all of it.
    pub fn is_confirmed(&self) -> bool {
        self.refresh == Refresh::Done && self.sockets.iter().all(|listed| listed.state == SocketState::Confirmed)
    }

    /// Numbers of the sockets it shall have.
    pub fn wanted(&self) -> impl Iterator<Item = u8> {
        self.sockets.iter().filter(|listed| listed.is_wanted()).map(|listed| listed.socket)
    }

    /// Replaces the list. `present`: sockets that have ports; those that are not in the new list go.
    pub fn replace(&mut self, channel: u8, given: &[Given], present: &[u8], at: i64) {
        self.channel = Some(channel);
        self.refresh = Refresh::Wanted;
        for listed in &mut self.sockets {
            if given.iter().all(|given| given.socket != listed.socket) {
                (listed.state, listed.refused, listed.updated_at) = (SocketState::Removing, None, at);
            }
        }
        for &socket in present {
            if given.iter().all(|given| given.socket != socket) {
                self.entry(socket, at).state = SocketState::Removing;
            }
        }
        for given in given {
            self.put(given, at);
        }
    }

    /// Adds a socket. One that is there already is left as it is, but for a refusal, which is forgotten.
    ///
    /// # Errors
    /// Number or MAC is taken.
    pub fn add(&mut self, given: &Given, at: i64) -> Result<(), Taken> {
        let mac = Some(given.mac);
        for listed in self.sockets.iter().filter(|listed| listed.is_wanted()) {
            if listed.socket != given.socket && listed.mac == mac {
                return Err(Taken::Mac(listed.socket));
            }
            if listed.socket == given.socket && listed.mac.is_some() && listed.mac != mac {
                return Err(Taken::Number(listed.socket));
            }
        }
        let known = self.sockets.iter_mut().find(|listed| listed.socket == given.socket);
        match known {
            Some(listed) if listed.is_wanted() && listed.mac == mac => {
                listed.refused = None;
                listed.uid = given.uid.clone().or_else(|| listed.uid.take());
            }
            Some(listed) => {
                // Nobody knows whether its removal has happened: the list as a whole settles it.
                let removed = !listed.is_wanted();
                self.put(given, at);
                if removed && self.channel.is_some() {
                    self.refresh = Refresh::Wanted;
                }
            }
            None => self.put(given, at),
        }
        Ok(())
    }

    /// Removes a socket; false: it is not in the list.
    pub fn remove(&mut self, socket: u8, at: i64) -> bool {
        let Some(listed) = self.sockets.iter_mut().find(|listed| listed.socket == socket) else { return false };
        if listed.is_wanted() {
            (listed.state, listed.updated_at) = (SocketState::Removing, at);
        }
        listed.refused = None;
        true
    }

    fn entry(&mut self, socket: u8, at: i64) -> &mut Listed {
        let place = self.sockets.partition_point(|listed| listed.socket < socket);
        if self.sockets.get(place).is_none_or(|listed| listed.socket != socket) {
            let state = SocketState::Desired;
            let (mac, uid, refused, confirmed_at) = (None, None, None, None);
            self.sockets.insert(place, Listed { socket, mac, uid, state, refused, confirmed_at, updated_at: at });
        }
        &mut self.sockets[place]
    }

    fn put(&mut self, given: &Given, at: i64) {
        let listed = self.entry(given.socket, at);
        if listed.mac != Some(given.mac) {
            listed.confirmed_at = None;
        }
        listed.mac = Some(given.mac);
        listed.uid.clone_from(&given.uid);
        (listed.state, listed.refused, listed.updated_at) = (SocketState::Desired, None, at);
    }

    /// The command that brings the gateway nearer to the list; `None`: it has it, or refused what it lacks.
    pub fn next(&self) -> Option<GatewayCall> {
        if let (Refresh::Wanted, Some(channel)) = (self.refresh, self.channel) {
            let sockets = self.sockets.iter().filter_map(Listed::wire).take(REFRESH_SOCKETS_MAX).collect();
            return Some(GatewayCall::NetworkRefresh { channel, sockets });
        }
        let mut open = self.sockets.iter().filter(|listed| listed.refused.is_none());
        let removing = open.clone().find(|listed| listed.state == SocketState::Removing);
        if let Some(listed) = removing {
            return Some(GatewayCall::NetworkRemove { socket: listed.socket });
        }
        open.find_map(|listed| listed.wire().filter(|_| listed.state == SocketState::Desired))
            .map(|socket| GatewayCall::NetworkAdd { socket })
    }

    /// Whether a command that is not written yet still brings the gateway nearer to the list.
    pub fn still_wants(&self, call: &GatewayCall) -> bool {
        match call {
            GatewayCall::NetworkAdd { socket } => {
                let open = |listed: &Listed| listed.state == SocketState::Desired && listed.wire() == Some(*socket);
                self.refresh != Refresh::Wanted && self.sockets.iter().any(open)
            }
            GatewayCall::NetworkRemove { socket } => {
                let open = |listed: &Listed| listed.state == SocketState::Removing && listed.socket == *socket;
                self.refresh != Refresh::Wanted && self.sockets.iter().any(open)
            }
            call => self.next().as_ref() == Some(call),
        }
    }

    /// The gateway answered a command, or did not.
    pub fn answered(&mut self, call: &GatewayCall, answer: Answer, at: i64) {
        let latest = self.next().as_ref() == Some(call);
        match (call, answer) {
            (GatewayCall::NetworkRefresh { sockets, .. }, Answer::Ok) => {
                let sent = |socket: u8| sockets.iter().find(|sent| sent.socket == socket);
                self.sockets.retain(|listed| listed.is_wanted() || sent(listed.socket).is_some());
                for listed in self.sockets.iter_mut().filter(|listed| listed.is_wanted()) {
                    // What the command did not carry, the gateway does not have any more.
                    listed.state = SocketState::Desired;
                    listed.refused = None;
                    if sent(listed.socket).is_some_and(|sent| Some(*sent) == listed.wire()) {
                        (listed.state, listed.confirmed_at) = (SocketState::Confirmed, Some(at));
                    }
                }
                if latest {
                    self.refresh = Refresh::Done;
                }
            }
            (GatewayCall::NetworkRefresh { .. }, Answer::No(_)) if latest => self.refresh = Refresh::Failed,
            (GatewayCall::NetworkAdd { socket }, answer) => {
                let wanted = |listed: &&mut Listed| listed.wire() == Some(*socket);
                if let Some(listed) = self.sockets.iter_mut().find(wanted) {
                    match answer {
                        Answer::Ok => {
                            (listed.state, listed.refused) = (SocketState::Confirmed, None);
                            listed.confirmed_at = Some(at);
                        }
                        Answer::No(why) => listed.refused = Some(why.to_owned()),
                    }
                }
            }
            (GatewayCall::NetworkRemove { socket }, Answer::Ok) => {
                self.sockets.retain(|listed| listed.is_wanted() || listed.socket != *socket);
            }
            (GatewayCall::NetworkRemove { socket }, Answer::No(why)) => {
                let going = |listed: &&mut Listed| listed.socket == *socket && !listed.is_wanted();
                if let Some(listed) = self.sockets.iter_mut().find(going) {
                    listed.refused = Some(why.to_owned());
                }
            }
            _ => {}
        }
    }

    /// The gateway is there again, and no command is under way: what it did not confirm is sent once more, as a whole where the
    /// whole was ever given.
    pub fn at_bind(&mut self) {
        if self.is_confirmed() {
            return;
        }
        self.sockets.iter_mut().for_each(|listed| listed.refused = None);
        if self.channel.is_some() {
            self.refresh = Refresh::Wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(socket: u8) -> Given {
        Given { socket, mac: [0, 0, 0, 0, 0, socket], uid: Some(format!("uid-{socket}")) }
    }

    fn wire(socket: u8) -> NetworkSocket {
        NetworkSocket { socket, mac: given(socket).mac }
    }

    fn refresh(sockets: &[u8]) -> GatewayCall {
        GatewayCall::NetworkRefresh { channel: 3, sockets: sockets.iter().map(|socket| wire(*socket)).collect() }
    }

    fn listed(sockets: &[u8]) -> NetworkList {
        let mut list = NetworkList::default();
        list.replace(3, &sockets.iter().map(|socket| given(*socket)).collect::<Vec<_>>(), &[], 1);
        list
    }

    fn confirmed(sockets: &[u8]) -> NetworkList {
        let mut list = listed(sockets);
        list.answered(&refresh(sockets), Answer::Ok, 2);
        assert!(list.is_confirmed() && list.next().is_none());
        list
    }

    fn states(list: &NetworkList) -> Vec<(u8, &'static str)> {
        list.sockets.iter().map(|listed| (listed.socket, listed.state.as_str())).collect()
    }

    #[test]
    fn a_list_is_sent_whole_and_confirmed_by_its_answer() {
        let mut list = listed(&[2, 1]);
        assert!(!list.is_confirmed());
        let call = list.next().expect("to be sent");
        assert_eq!(call, GatewayCall::NetworkRefresh { channel: 3, sockets: vec![wire(1), wire(2)] });
        list.answered(&call, Answer::Ok, 5);
        assert!(list.is_confirmed());
        assert_eq!(list.sockets[0].confirmed_at, Some(5));
    }

    #[test]
    fn a_large_list_goes_on_with_single_sockets() {
        let numbers: Vec<u8> = (1..=250).collect();
        let mut list = listed(&numbers);
        let first = list.next().unwrap();
        assert_eq!(first, refresh(&numbers[..REFRESH_SOCKETS_MAX]));
        list.answered(&first, Answer::Ok, 2);
        for number in &numbers[REFRESH_SOCKETS_MAX..] {
            let next = list.next().unwrap();
            assert_eq!(next, GatewayCall::NetworkAdd { socket: wire(*number) });
            list.answered(&next, Answer::Ok, 3);
        }
        assert!(list.is_confirmed());
        // Sent again, the gateway loses what does not fit until it is added again.
        list.sockets[0].state = SocketState::Desired;
        list.at_bind();
        let again = list.next().unwrap();
        list.answered(&again, Answer::Ok, 4);
        assert_eq!(list.next(), Some(GatewayCall::NetworkAdd { socket: wire(129) }));
    }

    #[test]
    fn single_changes_go_one_by_one_removals_first() {
        let mut list = confirmed(&[1, 2]);
        list.add(&given(3), 5).unwrap();
        assert!(list.remove(1, 6));
        assert_eq!(states(&list), [(1, "removing"), (2, "confirmed"), (3, "desired")]);
        assert_eq!(list.wanted().collect::<Vec<_>>(), [2, 3]);
        let call = list.next().unwrap();
        assert_eq!(call, GatewayCall::NetworkRemove { socket: 1 });
        list.answered(&call, Answer::Ok, 7);
        let call = list.next().unwrap();
        assert_eq!(call, GatewayCall::NetworkAdd { socket: wire(3) });
        list.answered(&call, Answer::Ok, 8);
        assert_eq!(states(&list), [(2, "confirmed"), (3, "confirmed")]);
        assert!(!list.remove(1, 9), "it is gone");
    }

    #[test]
    fn what_is_refused_waits_for_the_next_bind() {
        let mut list = confirmed(&[1]);
        list.add(&given(2), 5).unwrap();
        list.answered(&GatewayCall::NetworkAdd { socket: wire(2) }, Answer::No("device_refused"), 6);
        assert!(list.next().is_none() && !list.is_confirmed());
        assert_eq!(list.sockets[1].refused.as_deref(), Some("device_refused"));
        list.at_bind();
        assert_eq!(list.next(), Some(refresh(&[1, 2])));
        list.answered(&refresh(&[1, 2]), Answer::No("no_reply"), 7);
        assert_eq!((list.refresh, list.is_confirmed()), (Refresh::Failed, false));
        // A list that was never given as a whole has no channel: its sockets are sent one by one.
        let mut list = NetworkList::default();
        list.add(&given(1), 1).unwrap();
        list.answered(&GatewayCall::NetworkAdd { socket: wire(1) }, Answer::No("no_reply"), 2);
        list.at_bind();
        assert_eq!(list.next(), Some(GatewayCall::NetworkAdd { socket: wire(1) }));
        let mut list = confirmed(&[1]);
        list.at_bind();
        assert!(list.next().is_none(), "nothing is sent to a gateway that has its list");
    }

    #[test]
    fn an_answer_to_an_older_list_does_not_confirm_a_newer() {
        let mut list = listed(&[1, 2]);
        let older = list.next().unwrap();
        let other = Given { mac: [9; 6], ..given(2) };
        list.replace(3, &[other.clone(), given(3)], &[], 5);
        assert!(!list.still_wants(&older));
        list.answered(&older, Answer::Ok, 6);
        assert_eq!(states(&list), [(1, "removing"), (2, "desired"), (3, "desired")]);
        let next = list.next().unwrap();
        list.answered(&next, Answer::Ok, 7);
        assert_eq!(states(&list), [(2, "confirmed"), (3, "confirmed")]);
        assert!(list.is_confirmed());
    }

    #[test]
    fn a_socket_that_comes_back_while_it_goes_makes_the_list_whole() {
        let mut list = confirmed(&[1, 2]);
        list.remove(2, 5);
        let removal = list.next().unwrap();
        list.add(&given(2), 6).unwrap();
        assert!(!list.still_wants(&removal));
        list.answered(&removal, Answer::Ok, 7);
        assert_eq!(list.next(), Some(refresh(&[1, 2])), "the removal may have happened");
    }

    #[test]
    fn a_number_and_a_mac_are_listed_once() {
        let mut list = confirmed(&[1, 2]);
        let before = list.clone();
        assert_eq!(list.add(&Given { mac: [9; 6], ..given(2) }, 5), Err(Taken::Number(2)));
        assert_eq!(list.add(&Given { socket: 3, ..given(2) }, 5), Err(Taken::Mac(2)));
        list.add(&Given { uid: None, ..given(2) }, 5).unwrap();
        assert_eq!(list, before, "it is there already");
        // The MAC of a socket that goes is free.
        list.remove(2, 6);
        list.add(&Given { socket: 3, ..given(2) }, 7).unwrap();
        assert_eq!(states(&list), [(1, "confirmed"), (2, "removing"), (3, "desired")]);
    }

    #[test]
    fn sockets_that_were_only_seen_go_with_the_first_list() {
        let mut list = NetworkList::default();
        list.replace(3, &[given(2)], &[1, 2], 1);
        assert_eq!(states(&list), [(1, "removing"), (2, "desired")]);
        list.answered(&refresh(&[2]), Answer::Ok, 2);
        assert_eq!(states(&list), [(2, "confirmed")]);
    }
}
