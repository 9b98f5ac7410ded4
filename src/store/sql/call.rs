//! Named commands: queued for third parties, and what follows from their answers.

use super::{apply::Tx, command::NewCommand, network::of_network, rows::CommandRow};
use crate::{
    gateway::params::Group,
    model::{Command, CommandBody, CommandState, DeviceCall, DeviceId, Priority},
    store::{Called, CommandUpdate, NewCall, Outcome, StoreError, payload},
};

/// Attempts of commands that follow from others.
const ATTEMPTS_MAX: u8 = 3;
/// They are pointless later, Unix ms.
const VALID_MS: i64 = 300_000;

impl Tx<'_> {
    /// Queues a named command, or repeats what was answered.
    pub(super) fn call_once(&mut self, new: &NewCall) -> Result<Outcome, StoreError> {
        if let Some(earlier) = self.earlier(new.idempotency.as_ref())? {
            return Ok(Outcome::Repeated(earlier));
        }
        let called = self.call(new)?;
        if let (Some(asked), Called::Queued(record)) = (&new.idempotency, &called) {
            self.answered(asked, payload::command_accepted(record, &new.request_id, new.at))?;
        }
        Ok(Outcome::Called(called))
    }

    fn call(&mut self, new: &NewCall) -> Result<Called, StoreError> {
        let waiting = self.unfinished_of(new.device_id)?.iter().filter(|row| row.is_unwritten()).count();
        if waiting >= usize::try_from(new.waiting_max).unwrap_or(usize::MAX) {
            return Ok(Called::Full);
        }
        let Some(counters) = self.next_msg_id(new.device_id)? else { return Ok(Called::NoDevice) };
        let row = self.insert_command_row(
            NewCommand {
                device_id: new.device_id,
                order_no: None,
                body: CommandBody::Call { call: new.call.clone() },
                priority: new.priority,
                attempts_max: new.attempts_max,
                at: new.at,
                not_after: new.not_after,
                epoch: None,
                request_id: Some(new.request_id.clone()),
            },
            counters,
        )?;
        Ok(Called::Queued(Box::new(row.record())))
    }

    /// Queues a command that follows from another, claimed where the device's epoch is live.
    pub(super) fn follow_up(
        &mut self,
        device_id: DeviceId,
        call: DeviceCall,
        epoch: Option<i64>,
        at: i64,
    ) -> Result<Option<Command>, StoreError> {
        let Some(counters) = self.next_msg_id(device_id)? else { return Ok(None) };
        let new = NewCommand {
            device_id,
            order_no: None,
            body: CommandBody::Call { call },
            priority: Priority::Low,
            attempts_max: ATTEMPTS_MAX,
            at,
            not_after: at + VALID_MS,
            epoch,
            request_id: None,
        };
        self.insert_command(new, counters)
    }

    /// What a device's answer to a named command changes.
    pub(super) fn command_answered(
        &mut self,
        ended: &CommandRow,
        update: &CommandUpdate,
    ) -> Result<Outcome, StoreError> {
        let device_id = ended.device_id;
        if let Some(call) = of_network(&ended.body) {
            let Some(command) = ended.claimed() else { return Ok(Outcome::Done) };
            let next = self.network_answered(&command, call, update.state, update.at)?;
            return Ok(next.map_or(Outcome::Done, |next| Outcome::Claimed {
                device_id,
                commands: vec![next],
                orders: Vec::new(),
            }));
        }
        let (CommandBody::Call { call }, Some(epoch)) = (&ended.body, ended.epoch) else { return Ok(Outcome::Done) };
        if !matches!(update.state, CommandState::Acked | CommandState::Refused) {
            return Ok(Outcome::Done);
        }
        let acked = update.state == CommandState::Acked;
        let follow_up = match Group::of_call(call) {
            Some((group, socket)) => {
                self.params_answered(device_id, group, socket, call, acked, update.result.as_deref(), update.at)?
            }
            None => None,
        };
        let Some(call) = follow_up else { return Ok(Outcome::Done) };
        let command = self.follow_up(device_id, call, Some(epoch), update.at)?;
        Ok(command.map_or(Outcome::Done, |command| Outcome::Claimed {
            device_id,
            commands: vec![command],
            orders: Vec::new(),
        }))
    }
}
