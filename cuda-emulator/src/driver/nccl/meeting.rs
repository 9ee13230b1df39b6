//! How calls of ranks meet.

use super::{Calls, Channel, Kind, Operation, Post, Slot, operation};
use crate::check::Problem;
use crate::driver::status::{Answer, Status};
use crate::driver::{Driver, work::Work};

/// Calls of a rank on its stream, which end together.
#[derive(Debug, Clone)]
pub(crate) struct Meeting {
    clique: u64,
    posts: Vec<u64>,
}

/// How far a meeting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    Done,
    /// A stream must get to a piece of its work first.
    Needs {
        stream: u64,
        position: u64,
    },
    /// A rank has not made its call.
    Missing,
}

impl Slot {
    /// The calls that this one needs.
    fn partners(self, operation: &Operation, ranks: usize) -> Vec<Self> {
        let one = |rank| vec![Self { rank, ..self }];
        match operation.kind {
            // A rank that sends to itself meets itself.
            Kind::Send(peer) | Kind::Receive(peer) if peer == self.rank => {
                vec![Self { number: self.number ^ 1 << 63, ..self }]
            }
            Kind::Send(peer) | Kind::Receive(peer) => one(peer),
            _ => (0..ranks).filter(|rank| *rank != self.rank).flat_map(one).collect(),
        }
    }
}

impl Driver {
    /// Makes calls known to other ranks: they are queued on a stream as its piece of work number
    /// `position`.
    pub(crate) fn post(&mut self, calls: &Calls, stream: u64, position: u64) -> Answer<Meeting> {
        let rank = self.nccl.ranks.get_mut(&calls.communicator).ok_or(Status::INVALID_HANDLE)?;
        let (clique, own, device) = (rank.clique, rank.rank, rank.device);
        let mut slots = Vec::with_capacity(calls.operations.len());
        for operation in &calls.operations {
            let (channel, mark) = match operation.kind {
                Kind::Send(to) => (Channel::Pair { from: own, to }, 0),
                // The two calls of a rank to itself are told apart.
                Kind::Receive(from) if from == own => (Channel::Pair { from, to: own }, 1 << 63),
                Kind::Receive(from) => (Channel::Pair { from, to: own }, 0),
                _ => (Channel::All, 0),
            };
            let counted =
                if mark == 0 { channel } else { Channel::Pair { from: usize::MAX, to: own } };
            let number = rank.made.entry(counted).or_default();
            slots.push(Slot { clique, rank: own, channel, number: *number | mark });
            *number += 1;
        }
        let mut posts = Vec::with_capacity(slots.len());
        let mut mismatch = None;
        for (slot, operation) in slots.into_iter().zip(&calls.operations) {
            mismatch = mismatch.or_else(|| self.mismatch(slot, operation));
            let id = self.handle();
            let post = Post {
                slot,
                device,
                operation: *operation,
                stream,
                position,
                arrived: false,
                done: false,
            };
            self.nccl.posts.insert(id, post);
            self.nccl.slots.insert(slot, id);
            posts.push(id);
        }
        self.progress += 1;
        if let Some(what) = mismatch {
            self.break_clique(clique, Status::LAUNCH_FAILED);
            self.report("nccl", Problem::RankMismatch { what }, "calls of ranks".to_owned());
        }
        Ok(Meeting { clique, posts })
    }

    /// Whether the ranks of a meeting can't meet any more.
    pub(crate) fn is_broken(&self, meeting: &Meeting) -> bool {
        self.nccl.cliques.get(&meeting.clique).is_none_or(|clique| clique.broken.is_some())
    }

    fn break_clique(&mut self, clique: u64, status: Status) {
        if let Some(clique) = self.nccl.cliques.get_mut(&clique) {
            clique.broken.get_or_insert(status);
        }
    }

    fn size(&self, clique: u64) -> usize {
        self.nccl.cliques.get(&clique).map_or(0, |clique| clique.members.len())
    }

    /// A call of another rank at the same place that doesn't belong to this one.
    fn mismatch(&self, slot: Slot, operation: &Operation) -> Option<String> {
        slot.partners(operation, self.size(slot.clique)).into_iter().find_map(|partner| {
            let other = self.nccl.posts.get(self.nccl.slots.get(&partner)?)?;
            (!operation.fits(&other.operation)).then(|| {
                format!(
                    "call {} of rank {} is {}, that of rank {} is {}",
                    slot.number & !(1 << 63),
                    other.slot.rank,
                    other.operation.describe(),
                    slot.rank,
                    operation.describe()
                )
            })
        })
    }

    /// A stream has got to a meeting: does what can be done, and tells what is still needed.
    ///
    /// # Errors
    ///
    /// What a call fails with; its ranks can't meet any more then.
    pub(crate) fn meet(&mut self, meeting: &Meeting) -> Answer<Met> {
        let clique = self.nccl.cliques.get(&meeting.clique);
        let broken = clique.map_or(Some(Status::LAUNCH_FAILED), |clique| clique.broken);
        if let Some(status) = broken {
            self.forget(meeting);
            return Err(status);
        }
        for id in &meeting.posts {
            if let Some(post) = self.nccl.posts.get_mut(id) {
                post.arrived = true;
            }
        }
        for id in &meeting.posts {
            let state = self.nccl.posts.get(id).map(|post| (post.done, post.slot, post.operation));
            let Some((false, slot, operation)) = state else { continue };
            let mut together = vec![*id];
            for partner in slot.partners(&operation, self.size(slot.clique)) {
                let Some(other) = self.nccl.slots.get(&partner).copied() else {
                    return Ok(Met::Missing);
                };
                let Some(post) = self.nccl.posts.get(&other) else { return Ok(Met::Missing) };
                if !post.arrived {
                    return Ok(Met::Needs { stream: post.stream, position: post.position });
                }
                together.push(other);
            }
            self.carry_out(meeting.clique, &together)?;
        }
        self.forget(meeting);
        Ok(Met::Done)
    }

    fn carry_out(&mut self, clique: u64, together: &[u64]) -> Answer<()> {
        let mut calls: Vec<_> = together
            .iter()
            .filter_map(|id| self.nccl.posts.get(id))
            .map(|post| (post.slot.rank, post.device, post.operation))
            .collect();
        calls.sort_by_key(|(rank, ..)| *rank);
        let ranks = self.size(clique);
        let result = operation::execute(self, ranks, &calls);
        let name = match calls.first().map(|(.., operation)| operation.kind) {
            Some(Kind::AllReduce(_)) => "ncclAllReduce",
            Some(Kind::Reduce(..)) => "ncclReduce",
            Some(Kind::Broadcast(_)) => "ncclBroadcast",
            Some(Kind::AllGather) => "ncclAllGather",
            Some(Kind::ReduceScatter(_)) => "ncclReduceScatter",
            _ => "ncclSend and ncclRecv",
        };
        self.progress += 1;
        for id in together {
            if let Some(post) = self.nccl.posts.get_mut(id) {
                post.done = true;
            }
        }
        self.conclude(name, result).inspect_err(|status| self.break_clique(clique, *status))
    }

    fn forget(&mut self, meeting: &Meeting) {
        for id in &meeting.posts {
            if let Some(post) = self.nccl.posts.remove(id) {
                self.nccl.slots.remove(&post.slot);
            }
        }
    }

    /// Gives up ranks that others wait for: those get an error, and the reports name the missing.
    /// Called when nothing has happened for as long as [`super::super::Config::patience`] allows.
    pub fn give_up_ranks(&mut self) {
        let mut found = Vec::new();
        for (handle, clique) in &self.nccl.cliques {
            let missing: Vec<usize> = (0..clique.members.len())
                .filter(|rank| clique.members.get(*rank).is_none_or(Option::is_none))
                .collect();
            let forming = self.nccl.forming.values().any(|one| one == handle);
            if forming && clique.broken.is_none() && missing.len() < clique.members.len() {
                let size = clique.members.len();
                let what =
                    format!("ncclCommInitRank: of {size} ranks, {} did not come", list(&missing));
                found.push((*handle, what));
            }
        }
        for stream in self.streams.values() {
            let Some(Work::Meet(meeting)) = stream.queue.front() else { continue };
            let waiting = meeting.posts.iter().filter_map(|id| self.nccl.posts.get(id));
            let Some(post) = waiting.clone().find(|post| post.arrived && !post.done) else {
                continue;
            };
            let partners = post.slot.partners(&post.operation, self.size(meeting.clique));
            let missing: Vec<usize> = partners
                .into_iter()
                .filter(|partner| !self.nccl.slots.contains_key(partner))
                .map(|partner| partner.rank)
                .collect();
            if !missing.is_empty() {
                let what = format!(
                    "rank {} waits in its call {}, {}: {} did not come",
                    post.slot.rank,
                    post.slot.number & !(1 << 63),
                    post.operation.describe(),
                    list(&missing)
                );
                found.push((meeting.clique, what));
            }
        }
        for (clique, what) in found {
            self.break_clique(clique, Status::TIMEOUT);
            let ended: Vec<_> =
                self.nccl.forming.iter().filter(|one| *one.1 == clique).map(|one| *one.0).collect();
            for id in ended {
                self.nccl.forming.remove(&id);
            }
            self.report("nccl", Problem::RankMissing { what }, "communicator".to_owned());
        }
    }

    /// Streams wait for each other in a circle.
    pub(crate) fn report_circle(&mut self, meeting: &Meeting) -> Status {
        let post = meeting.posts.iter().filter_map(|id| self.nccl.posts.get(id)).next();
        let what = post.map_or_else(String::new, |post| {
            format!(
                "rank {} waits in its {} for a rank that waits in a call made before: ranks make \
                 calls in different orders",
                post.slot.rank,
                post.operation.describe()
            )
        });
        self.break_clique(meeting.clique, Status::TIMEOUT);
        self.report("nccl", Problem::RankMismatch { what }, "calls of ranks".to_owned());
        Status::TIMEOUT
    }
}

fn list(ranks: &[usize]) -> String {
    let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{noun} {}", names.join(", "))
}
