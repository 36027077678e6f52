//! Requests to the replicas: of producers, of followers, of the controllers' answers, and questions.

use quorate_log::LogError;
use quorate_metadata::ErrorName;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, TopicPartition};

use super::super::replica::{Answer, Cut, NewRecords, Position, Refused, Sink, Supplied, not_leader};
use super::{Command, Outage, Round, Shard};

impl Shard {
    pub(super) fn handle(&mut self, round: &mut Round, command: Command) {
        if let Some(outage) = self.failure.clone() {
            return self.refuse(round, command, &outage);
        }
        if let Err(error) = self.try_handle(round, command) {
            self.fail(&error);
        }
    }

    fn try_handle(&mut self, round: &mut Round, command: Command) -> Result<(), LogError> {
        let now_ms = self.now_ms();
        match command {
            Command::Produce(id, records) => self.produce(round, id, records),
            Command::Positions { follower, positions, sink } => {
                self.take_positions(round, follower, positions, &sink, now_ms);
            }
            Command::Supplied(supplied) => self.supply(round, &supplied)?,
            Command::Outcomes(outcomes) => {
                for (id, proposal, outcome) in outcomes {
                    round.touched.insert(id);
                    if let Some(replica) = self.owned.get_mut(&id) {
                        replica.on_outcome(&proposal, outcome, now_ms);
                    }
                }
            }
            Command::Ask(id, question) => question(self.owned.get(&id).map(AsRef::as_ref), now_ms),
            Command::Stop(done) => {
                self.owned.values_mut().for_each(|replica| replica.checkpoint(&mut round.writes));
                round.stopped = Some(done);
            }
        }
        Ok(())
    }

    fn produce(&mut self, round: &mut Round, id: TopicPartition, records: NewRecords) {
        round.touched.insert(id);
        match self.owned.get_mut(&id) {
            Some(replica) => {
                let state = replica.leader_state(&self.around.leaders);
                replica.produce(&mut round.writes, records, state);
            }
            None => drop(records.reply.send(Err(not_leader(id)))),
        }
    }

    fn take_positions(
        &mut self,
        round: &mut Round,
        follower: (BrokerId, BrokerEpoch),
        positions: Vec<Position>,
        sink: &Sink,
        now_ms: i64,
    ) {
        for position in positions {
            round.touched.insert(position.id);
            match self.owned.get_mut(&position.id) {
                Some(replica) => replica.take_position(follower, position, sink, now_ms),
                None => refuse_position(sink, position.id, ErrorName::NotLeaderOrFollower),
            }
        }
    }

    fn supply(&mut self, round: &mut Round, supplied: &[Supplied]) -> Result<(), LogError> {
        for supplied in supplied {
            round.touched.insert(supplied.id);
            let bytes = supplied.batches.iter().map(bytes::Bytes::len).sum();
            if let Some(replica) = self.owned.get_mut(&supplied.id) {
                let cut = replica.supply(&mut round.writes, supplied)?;
                match cut {
                    Cut::None => {}
                    Cut::Truncated => self.mass_changes.count(|counts| counts.truncated += 1),
                    Cut::Restarted => self.mass_changes.count(|counts| counts.restarted += 1),
                }
            }
            self.slow_down(supplied.id, bytes);
        }
        Ok(())
    }

    /// The directory is offline: nothing of it is served, and whoever asks hears why.
    fn refuse(&mut self, round: &mut Round, command: Command, outage: &Outage) {
        match command {
            Command::Produce(_, records) => drop(records.reply.send(Err(outage.error(self.handle.directory())))),
            Command::Positions { positions, sink, .. } => {
                positions.iter().for_each(|at| refuse_position(&sink, at.id, ErrorName::KafkaStorageError));
            }
            Command::Ask(_, question) => question(None, self.now_ms()),
            Command::Stop(done) => round.stopped = Some(done),
            Command::Supplied(_) | Command::Outcomes(_) => {}
        }
    }
}

fn refuse_position(sink: &Sink, id: TopicPartition, error: ErrorName) {
    // A follower whose stream has ended comes again on another.
    let _ = sink.send(Answer { id, said: Err(Refused { error, log_start: quorate_log::LogOffset(0) }) });
}
