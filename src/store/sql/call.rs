//! Named commands: queued for third parties, and what follows from their answers.

use super::{
    apply::Tx,
    command::NewCommand,
    conn::{one, scalar},
    network::of_network,
    row::{command, command_columns, command_record, command_record_columns},
};
use crate::{
    gateway::params::Group,
    model::{Command, CommandBody, CommandState, DeviceCall, DeviceId, Priority},
    store::{Called, CommandRecord, CommandUpdate, NewCall, Outcome, StoreError, payload},
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
        let waiting: Option<u32> = scalar(
            self.conn,
            "SELECT count(*) FROM outbound_queue WHERE device_id = $1 AND state IN ('queued', 'claimed')",
            [new.device_id.to_string()],
        )?;
        if waiting.unwrap_or(0) >= new.waiting_max {
            return Ok(Called::Full);
        }
        let Some(counters) = self.next_msg_id(new.device_id)? else { return Ok(Called::NoDevice) };
        let (id, _) = self.insert_command_row(
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
        let record = self.command_record(id)?;
        let record = record.ok_or_else(|| StoreError::Statement("a command that was inserted is not there".into()))?;
        Ok(Called::Queued(Box::new(record)))
    }

    fn command_record(&self, id: i64) -> Result<Option<CommandRecord>, StoreError> {
        one(
            self.conn,
            concat!("SELECT ", command_record_columns!(), " FROM outbound_queue WHERE id = $1"),
            [id],
            command_record,
        )
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
    pub(super) fn command_answered(&mut self, update: &CommandUpdate) -> Result<Outcome, StoreError> {
        let answered = one(
            self.conn,
            concat!("SELECT ", command_columns!(), " FROM outbound_queue WHERE id = $1"),
            [update.id],
            command,
        )?;
        if let Some(ended) = &answered
            && let Some(call) = of_network(&ended.body)
        {
            let next = self.network_answered(ended, call, update.state, update.at)?;
            let device_id = ended.device_id;
            return Ok(next.map_or(Outcome::Done, |next| Outcome::Claimed { device_id, commands: vec![next] }));
        }
        let Some(Command { device_id, epoch, body: CommandBody::Call { call }, .. }) = answered else {
            return Ok(Outcome::Done);
        };
        if !matches!(update.state, CommandState::Acked | CommandState::Refused) {
            return Ok(Outcome::Done);
        }
        let acked = update.state == CommandState::Acked;
        let follow_up = match Group::of_call(&call) {
            Some((group, socket)) => {
                self.params_answered(device_id, group, socket, &call, acked, update.result.as_deref(), update.at)?
            }
            None => None,
        };
        let Some(call) = follow_up else { return Ok(Outcome::Done) };
        let command = self.follow_up(device_id, call, Some(epoch), update.at)?;
        Ok(command.map_or(Outcome::Done, |command| Outcome::Claimed { device_id, commands: vec![command] }))
    }
}
