//! Follows an engine's cache and publishes its changes.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use understory::Namespace;
use understory::cache::Event;
use understory::engine::Engine;
use zeromq::{PubSocket, RouterSocket, Socket, SocketSend, ZmqMessage};

use super::config::{KvEventsConfig, bindable};
use super::log::{Batch, BatchLog};
use super::replay::answer_replays;
use super::wire;

/// Gives the name of a namespace that isn't the default one: the salt by which routers know it.
pub type NamespaceNames = Arc<dyn Fn(Namespace) -> Option<String> + Send + Sync>;

/// How long the cache is followed without a look at whether that is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// Why events can't be published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvEventsError {
    /// The settings make no sense.
    #[error("the settings of cache events make no sense: {reason}")]
    Config {
        /// What is wrong.
        reason: String,
    },
    /// A socket can't listen.
    #[error("can't listen at {endpoint} for cache events: {reason}")]
    Listen {
        /// Where.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// The engine takes no calls, or no thread can be started.
    #[error("can't follow the cache: {reason}")]
    Follow {
        /// Why not.
        reason: String,
    },
}

/// Publishes the changes of an engine's cache until it is dropped.
pub struct KvEvents {
    endpoint: String,
    replay_endpoint: Option<String>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks share.
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) topic: Bytes,
    pub(super) log: Mutex<BatchLog>,
    rank: u32,
    names: NamespaceNames,
}

impl KvEvents {
    /// Begins to publish. The engine must keep events
    /// ([`cache_events`](understory::engine::EngineOptions::cache_events)), and nobody else may take
    /// them. Runs on the runtime that it is called on, with a thread beside.
    ///
    /// # Errors
    ///
    /// [`KvEventsError`].
    pub async fn start(
        engine: Engine,
        config: KvEventsConfig,
        names: Option<NamespaceNames>,
    ) -> Result<Self, KvEventsError> {
        let mut publisher = PubSocket::new();
        let endpoint = listen(&mut publisher, &config.endpoint).await?;
        let (replay, replay_endpoint) = match &config.replay_endpoint {
            Some(endpoint) => {
                let mut socket = RouterSocket::new();
                let endpoint = listen(&mut socket, endpoint).await?;
                (Some(socket), Some(endpoint))
            }
            None => (None, None),
        };
        let shared = Arc::new(Shared {
            engine,
            topic: Bytes::from(config.topic.into_bytes()),
            log: Mutex::new(BatchLog::new(config.buffer_steps, config.buffer_bytes)),
            rank: config.data_parallel_rank,
            names: names.unwrap_or_else(|| Arc::new(|_| None)),
        });
        let is_over = Arc::new(AtomicBool::new(false));
        // What a slow socket hasn't sent is in the log too, and costs little more.
        let (batches, published) = mpsc::unbounded_channel();
        let follower = Follower {
            shared: Arc::clone(&shared),
            batches,
            is_over: Arc::clone(&is_over),
            expected: 0,
        };
        thread::Builder::new()
            .name("understory-kv-events".to_owned())
            .spawn(move || follower.run())
            .map_err(|error| KvEventsError::Follow { reason: error.to_string() })?;
        let mut tasks = vec![tokio::spawn(publish(publisher, shared.topic.clone(), published))];
        if let Some(socket) = replay {
            tasks.push(tokio::spawn(answer_replays(socket, shared)));
        }
        Ok(Self { endpoint, replay_endpoint, is_over, tasks })
    }

    /// Where batches are published, with the port that was chosen.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where replays are answered, if anywhere.
    #[must_use]
    pub fn replay_endpoint(&self) -> Option<&str> {
        self.replay_endpoint.as_deref()
    }
}

impl Drop for KvEvents {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for KvEvents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KvEvents")
            .field("endpoint", &self.endpoint)
            .field("replay_endpoint", &self.replay_endpoint)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The whole tree as one payload; none once the engine has ended. Blocks for a step.
    pub(super) fn snapshot(&self) -> Option<Bytes> {
        let dump = self.engine.dump_cache_events().ok()?;
        Some(wire::snapshot(&dump, self.rank, &*self.names))
    }

    fn publish(&self, payload: Bytes, batches: &mpsc::UnboundedSender<Batch>) -> bool {
        // Sent while the log is held, so that batches leave in the order of their numbers.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        batches.send(log.push(payload)).is_ok()
    }
}

/// The thread that takes changes from the engine.
struct Follower {
    shared: Arc<Shared>,
    batches: mpsc::UnboundedSender<Batch>,
    is_over: Arc<AtomicBool>,
    /// The number of the change that comes next.
    expected: u64,
}

impl Follower {
    fn run(mut self) {
        // What was cached before anybody followed.
        let mut goes_on = self.begin_anew(true);
        while goes_on && !self.is_over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let events = self.shared.engine.wait_for_cache_events(LOOK);
            goes_on = match events.first() {
                // An engine that has ended doesn't wait.
                None => {
                    asked.elapsed() >= LOOK / 2 || self.shared.engine.dump_cache_events().is_ok()
                }
                Some(first) if first.sequence > self.expected => {
                    self.expected = events.last().map_or(0, |last| last.sequence + 1);
                    self.begin_anew(false)
                }
                Some(_) => self.tell(&events),
            };
        }
    }

    /// Publishes changes, without those that a dump has told of.
    fn tell(&mut self, events: &[Event]) -> bool {
        let new = events.iter().position(|event| event.sequence >= self.expected);
        let new = new.and_then(|at| events.get(at..)).unwrap_or_default();
        let Some(last) = new.last() else { return true };
        self.expected = last.sequence + 1;
        let Shared { rank, names, .. } = &*self.shared;
        let changes: Vec<_> = new.iter().map(|event| &event.change).collect();
        let payload = wire::batch(changes.into_iter(), *rank, &**names);
        self.shared.publish(payload, &self.batches)
    }

    /// Publishes the whole tree: changes were lost, or nobody has followed them yet.
    fn begin_anew(&mut self, is_first: bool) -> bool {
        let Ok(dump) = self.shared.engine.dump_cache_events() else { return false };
        if let Some(event) = dump.first() {
            self.expected = event.sequence;
        } else if is_first {
            return true;
        }
        let Shared { rank, names, .. } = &*self.shared;
        self.shared.publish(wire::snapshot(&dump, *rank, &**names), &self.batches)
    }
}

async fn listen<S: Socket>(socket: &mut S, endpoint: &str) -> Result<String, KvEventsError> {
    let bound = socket.bind(&bindable(endpoint)).await;
    bound.map(|bound| bound.to_string()).map_err(|error| KvEventsError::Listen {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    })
}

async fn publish(mut socket: PubSocket, topic: Bytes, mut batches: mpsc::UnboundedReceiver<Batch>) {
    while let Some(Batch { number, payload }) = batches.recv().await {
        let number = Bytes::copy_from_slice(&number.to_be_bytes());
        let Ok(message) = ZmqMessage::try_from(vec![topic.clone(), number, payload]) else {
            continue;
        };
        // A subscriber that is gone or too slow finds the gap and asks for a replay.
        if let Err(error) = socket.send(message).await {
            tracing::debug!(%error, "a batch of cache events was not sent");
        }
    }
}
