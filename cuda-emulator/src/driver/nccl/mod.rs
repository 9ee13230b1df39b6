//! The stand-in for NCCL: ranks are threads of this process, or one thread with groups of calls.
//!
//! A call is queued on its rank's stream. Once a stream gets there, its rank has arrived; what a
//! call does is done when all ranks that it needs have. Whoever waits for a rank that is still on
//! its way (another thread's) waits for that thread's calls; a rank that never comes ends the wait
//! with a report that names the rank. Calls of different ranks that don't belong together are
//! reported as soon as both are queued. What a device would do is a hang, or wrong data.

mod meeting;
mod operation;

use std::collections::HashMap;

use super::Driver;
use super::status::Status;
use super::work::Work;
use crate::check::Problem;
pub(crate) use meeting::{Meeting, Met};
pub use operation::{Datum, Kind, Operation, Reduction};

/// A result code of NCCL, as `nccl.h` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NcclStatus(pub u32);

#[allow(missing_docs)] // The names are those of the header.
impl NcclStatus {
    pub const SUCCESS: Self = Self(0);
    pub const UNHANDLED_CUDA_ERROR: Self = Self(1);
    pub const SYSTEM_ERROR: Self = Self(2);
    pub const INTERNAL_ERROR: Self = Self(3);
    pub const INVALID_ARGUMENT: Self = Self(4);
    pub const INVALID_USAGE: Self = Self(5);
    pub const REMOTE_ERROR: Self = Self(6);
    /// Not of NCCL: the call waits for other ranks, and is made again.
    pub const BLOCKED: Self = Self(Status::BLOCKED.0);
}

impl From<Status> for NcclStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::BLOCKED => Self::BLOCKED,
            Status::INVALID_HANDLE | Status::INVALID_VALUE => Self::INVALID_ARGUMENT,
            _ => Self::UNHANDLED_CUDA_ERROR,
        }
    }
}

/// What a call gives.
pub type NcclAnswer<T> = Result<T, NcclStatus>;

/// What identifies a communicator before it exists: `ncclUniqueId`.
pub type UniqueId = [u8; 128];

/// Communicators, and calls that have not met yet.
#[derive(Debug, Default)]
pub(super) struct Nccl {
    cliques: HashMap<u64, Clique>,
    /// Cliques that ranks still join, by what identifies them.
    forming: HashMap<UniqueId, u64>,
    ranks: HashMap<u64, Rank>,
    posts: HashMap<u64, Post>,
    slots: HashMap<Slot, u64>,
    ids: u64,
}

/// The ranks of a communicator.
#[derive(Debug)]
struct Clique {
    id: UniqueId,
    /// The handle of each rank that has joined.
    members: Vec<Option<u64>>,
    /// Set once its ranks can't meet any more.
    broken: Option<Status>,
}

/// A rank's communicator.
#[derive(Debug)]
struct Rank {
    clique: u64,
    rank: usize,
    device: usize,
    /// How many calls it has made on each channel.
    made: HashMap<Channel, u64>,
}

/// Where calls meet in order: all ranks, or from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Channel {
    All,
    Pair { from: usize, to: usize },
}

/// The place of a rank's call: the n-th on its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Slot {
    clique: u64,
    rank: usize,
    channel: Channel,
    number: u64,
}

/// A call that is queued.
#[derive(Debug)]
struct Post {
    slot: Slot,
    device: usize,
    operation: Operation,
    /// The stream that it is queued on, and which piece of its work it is, counted from 1.
    stream: u64,
    position: u64,
    arrived: bool,
    done: bool,
}

/// Calls of a rank that are made together, as they are captured.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    pub(crate) communicator: u64,
    pub(crate) operations: Vec<Operation>,
}

/// The communicator of a rank as programs ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// The rank.
    pub rank: usize,
    /// The number of ranks.
    pub size: usize,
    /// The rank's device.
    pub device: usize,
    /// Whether the ranks can't meet any more.
    pub broken: bool,
}

impl Driver {
    /// `ncclGetUniqueId`.
    pub fn unique_id(&mut self) -> UniqueId {
        self.nccl.ids += 1;
        let mut id = [0; 128];
        let parts =
            [u64::from_le_bytes(*b"emulator"), u64::from(std::process::id()), self.nccl.ids];
        for (place, part) in id.chunks_mut(8).zip(parts) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        id
    }

    /// The first half of `ncclCommInitRank`: the handle of the rank's communicator, which can be
    /// used once [`Self::joined`] says so.
    ///
    /// # Errors
    ///
    /// A rank that there isn't or that has joined before; a device that another rank uses; another
    /// number of ranks than others gave.
    pub fn join(&mut self, device: usize, id: UniqueId, size: i32, rank: i32) -> NcclAnswer<u64> {
        let wrong = NcclStatus::INVALID_ARGUMENT;
        let (size, rank) =
            (usize::try_from(size).map_err(|_| wrong)?, usize::try_from(rank).map_err(|_| wrong)?);
        if size == 0 || size > 1 << 16 || rank >= size {
            self.advise("ncclCommInitRank", &format!("rank {rank} of {size}"));
            return Err(wrong);
        }
        let clique = match self.nccl.forming.get(&id) {
            Some(clique) => *clique,
            None => {
                let handle = self.handle();
                let clique = Clique { id, members: vec![None; size], broken: None };
                self.nccl.cliques.insert(handle, clique);
                self.nccl.forming.insert(id, handle);
                handle
            }
        };
        let state = self.nccl.cliques.get(&clique).ok_or(NcclStatus::INTERNAL_ERROR)?;
        let others: Vec<u64> = state.members.iter().flatten().copied().collect();
        let taken = others
            .iter()
            .filter_map(|other| self.nccl.ranks.get(other))
            .find(|other| other.device == device || other.rank == rank);
        let refusal = match (taken, state.members.len()) {
            (_, expected) if expected != size => {
                Some(format!("rank {rank} says {size} ranks, others said {expected}"))
            }
            (Some(other), _) if other.rank == rank => Some(format!("two ranks are number {rank}")),
            (Some(other), _) => {
                Some(format!("ranks {} and {rank} are both on device {device}", other.rank))
            }
            (None, _) => None,
        };
        if let Some(refusal) = refusal {
            self.advise("ncclCommInitRank", &refusal);
            return Err(NcclStatus::INVALID_USAGE);
        }
        let handle = self.handle();
        self.nccl.ranks.insert(handle, Rank { clique, rank, device, made: HashMap::new() });
        if let Some(place) =
            self.nccl.cliques.get_mut(&clique).and_then(|state| state.members.get_mut(rank))
        {
            *place = Some(handle);
        }
        if others.len() + 1 == size {
            self.nccl.forming.remove(&id);
        }
        self.progress += 1;
        Ok(handle)
    }

    /// The second half of `ncclCommInitRank`: whether all ranks have joined.
    ///
    /// # Errors
    ///
    /// `BLOCKED` as long as some have not; `SYSTEM_ERROR` once they were given up.
    pub fn joined(&self, communicator: u64) -> NcclAnswer<()> {
        let rank = self.rank(communicator)?;
        let clique = self.nccl.cliques.get(&rank.clique).ok_or(NcclStatus::INTERNAL_ERROR)?;
        match clique.broken {
            Some(_) => Err(NcclStatus::SYSTEM_ERROR),
            None if clique.members.iter().any(Option::is_none) => Err(NcclStatus::BLOCKED),
            None => Ok(()),
        }
    }

    fn rank(&self, communicator: u64) -> NcclAnswer<&Rank> {
        self.nccl.ranks.get(&communicator).ok_or(NcclStatus::INVALID_ARGUMENT)
    }

    /// What a communicator is.
    ///
    /// # Errors
    ///
    /// An unknown one.
    pub fn membership(&self, communicator: u64) -> NcclAnswer<Membership> {
        let rank = self.rank(communicator)?;
        let clique = self.nccl.cliques.get(&rank.clique).ok_or(NcclStatus::INTERNAL_ERROR)?;
        Ok(Membership {
            rank: rank.rank,
            size: clique.members.len(),
            device: rank.device,
            broken: clique.broken.is_some(),
        })
    }

    /// `ncclCommFinalize`: does what the rank has queued.
    ///
    /// # Errors
    ///
    /// `BLOCKED` while that waits for other ranks, and what it fails with.
    pub fn finalize(&mut self, communicator: u64) -> NcclAnswer<()> {
        let (clique, own) = {
            let rank = self.rank(communicator)?;
            (rank.clique, rank.rank)
        };
        let mine = |post: &&Post| post.slot.clique == clique && post.slot.rank == own;
        let mut queued: Vec<(u64, u64)> = self
            .nccl
            .posts
            .values()
            .filter(mine)
            .map(|post| (post.position, post.stream))
            .collect();
        queued.sort_unstable();
        for (position, stream) in queued {
            self.drain(stream, position)?;
        }
        Ok(())
    }

    /// `ncclCommAbort`, and the end of `ncclCommDestroy`. Calls that are queued still will not be
    /// done.
    ///
    /// # Errors
    ///
    /// An unknown communicator.
    pub fn leave(&mut self, communicator: u64) -> NcclAnswer<()> {
        let rank = self.nccl.ranks.remove(&communicator).ok_or(NcclStatus::INVALID_ARGUMENT)?;
        let mine = |post: &Post| {
            post.slot.clique == rank.clique && post.slot.rank == rank.rank && !post.done
        };
        let left = self.nccl.posts.values().filter(|post| mine(post)).count();
        if left > 0 {
            let what = format!("rank {} leaves with {left} calls that are not done", rank.rank);
            self.report("ncclCommAbort", Problem::RankMissing { what }, "communicator".to_owned());
        }
        self.progress += 1;
        let Some(clique) = self.nccl.cliques.get_mut(&rank.clique) else { return Ok(()) };
        if let Some(place) = clique.members.get_mut(rank.rank) {
            *place = None;
        }
        if left > 0 {
            clique.broken.get_or_insert(Status::LAUNCH_FAILED);
        }
        if clique.members.iter().all(Option::is_none) {
            let id = clique.id;
            self.nccl.forming.remove(&id);
            // Calls that are queued still find it broken.
            let queued = self.nccl.posts.values().any(|post| post.slot.clique == rank.clique);
            if !queued {
                self.nccl.cliques.remove(&rank.clique);
            }
        }
        Ok(())
    }

    /// Queues calls of a rank that are made together.
    ///
    /// # Errors
    ///
    /// A stream of another device than the rank's, a peer or root that there isn't, or calls that
    /// don't belong to those of other ranks.
    pub fn communicate(
        &mut self,
        communicator: u64,
        stream: u64,
        operations: Vec<Operation>,
    ) -> NcclAnswer<()> {
        let own = self.membership(communicator)?;
        if own.broken {
            return Err(NcclStatus::REMOTE_ERROR);
        }
        let stream = self.stream(own.device, stream)?;
        let device = self.streams.get(&stream).map(|stream| stream.device);
        if device != Some(own.device) {
            self.advise("nccl", "the stream is of another device than the communicator's");
            return Err(NcclStatus::INVALID_USAGE);
        }
        for operation in &operations {
            let other = match operation.kind {
                Kind::Reduce(_, other)
                | Kind::Broadcast(other)
                | Kind::Send(other)
                | Kind::Receive(other) => other,
                _ => 0,
            };
            if other >= own.size {
                let text = format!("{} of {} ranks", operation.describe(), own.size);
                self.advise("nccl", &text);
                return Err(NcclStatus::INVALID_ARGUMENT);
            }
        }
        let calls = Calls { communicator, operations };
        self.push(stream, Work::Communicate(std::sync::Arc::new(calls))).map_err(|status| {
            match status {
                Status::LAUNCH_FAILED => NcclStatus::INVALID_USAGE,
                other => other.into(),
            }
        })
    }
}
