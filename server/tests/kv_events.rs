//! Followers of the cache know what the engine finds, whenever they begin and whatever they miss.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::timeout;
use understory::Namespace;
use understory::cache::{Change, Tier};
use understory::prelude::*;
use understory::request::Prompt;
use understory_server::kv_events::{KvEvents, KvEventsConfig};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

const PAGE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// An event as a consumer in another language sees it.
#[derive(Debug, Deserialize)]
struct WireEvent {
    r#type: String,
    #[serde(default)]
    block_hashes: Vec<u64>,
    parent_block_hash: Option<u64>,
    #[serde(default)]
    token_ids: Vec<u32>,
    block_size: Option<usize>,
    #[serde(default)]
    medium: String,
    #[serde(default)]
    cache_salt: String,
}

/// A block by its salt, the hash of the block before, and its tokens.
type Block = (String, Option<u64>, Vec<u32>);

/// Follows as routers do: asks for what it missed, drops what it knows.
struct Follower {
    live: SubSocket,
    replay: DealerSocket,
    watermark: Option<u64>,
    blocks: HashMap<Block, u64>,
    present: BTreeSet<(u64, String)>,
    replays: usize,
}

impl Follower {
    async fn new(events: &KvEvents) -> Self {
        let (mut live, mut replay) = (SubSocket::new(), DealerSocket::new());
        live.connect(events.endpoint()).await.unwrap();
        live.subscribe("kv@").await.unwrap();
        replay.connect(events.replay_endpoint().unwrap()).await.unwrap();
        let (blocks, present) = (HashMap::new(), BTreeSet::new());
        Self { live, replay, watermark: None, blocks, present, replays: 0 }
    }

    /// Takes the next batch, if one comes soon.
    async fn follow(&mut self) {
        let Ok(message) = timeout(Duration::from_millis(20), self.live.recv()).await else {
            return;
        };
        let frames = message.unwrap().into_vec();
        assert_eq!((frames.len(), &frames[0][..]), (3, &b"kv@"[..]));
        let number = u64::from_be_bytes(frames[1][..].try_into().unwrap());
        let expected = self.watermark.map_or(0, |watermark| watermark + 1);
        if number > expected {
            self.ask(expected).await;
        }
        if self.watermark.is_none_or(|watermark| number > watermark) {
            self.apply(number, &frames[2]);
        }
    }

    async fn ask(&mut self, start: u64) {
        self.replays += 1;
        let frames = vec![Bytes::new(), Bytes::copy_from_slice(&start.to_be_bytes())];
        self.replay.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
        loop {
            let answer = timeout(PATIENCE, self.replay.recv()).await.expect("an answer");
            let frames = answer.unwrap().into_vec();
            assert_eq!(frames.len(), 4);
            let number = i64::from_be_bytes(frames[2][..].try_into().unwrap());
            if frames[3].is_empty() {
                assert_eq!(number, -1);
                return;
            }
            self.apply(number as u64, &frames[3]);
        }
    }

    fn apply(&mut self, number: u64, payload: &[u8]) {
        let (_, events, rank): (f64, Vec<WireEvent>, Option<i64>) =
            rmp_serde::from_slice(payload).unwrap();
        assert_eq!(rank, Some(2));
        for event in events {
            match &*event.r#type {
                "BlockStored" => {
                    assert_eq!(event.block_size, Some(PAGE));
                    assert_eq!(event.token_ids.len(), event.block_hashes.len() * PAGE);
                    let mut parent = event.parent_block_hash;
                    for (hash, tokens) in
                        event.block_hashes.iter().zip(event.token_ids.chunks(PAGE))
                    {
                        let block = (event.cache_salt.clone(), parent, tokens.to_vec());
                        self.blocks.insert(block, *hash);
                        self.present.insert((*hash, event.medium.clone()));
                        parent = Some(*hash);
                    }
                }
                "BlockRemoved" => {
                    for hash in event.block_hashes {
                        self.present.remove(&(hash, event.medium.clone()));
                    }
                }
                "AllBlocksCleared" => {
                    self.present.clear();
                    self.blocks.clear();
                }
                other => panic!("{other}"),
            }
        }
        self.watermark = Some(number);
    }

    /// Tokens of the prompt that are cached, as far as whole pages go.
    fn cached(&self, salt: &str, tokens: &[u32], tiers: &[&str]) -> usize {
        let mut parent = None;
        let pages = tokens.chunks_exact(PAGE).take_while(|tokens| {
            let hash = self.blocks.get(&(salt.to_owned(), parent, tokens.to_vec())).copied();
            parent = hash;
            let is_there =
                |hash| tiers.iter().any(|on| self.present.contains(&(hash, (*on).to_owned())));
            hash.is_some_and(is_there)
        });
        pages.count() * PAGE
    }

    /// Follows until nothing is missing.
    async fn catch_up(&mut self, engine: &Engine) {
        let caught_up = async {
            loop {
                let dump = engine.dump_cache_events().unwrap();
                let present = dump.iter().flat_map(|event| match &event.change {
                    Change::Stored(stored) => {
                        let on = if stored.tier == Tier::Device { "GPU" } else { "CPU_PINNED" };
                        stored.hashes.iter().map(move |&hash| (hash, on.to_owned())).collect()
                    }
                    _ => Vec::new(),
                });
                if present.collect::<BTreeSet<_>>() == self.present {
                    return;
                }
                self.follow().await;
            }
        };
        timeout(PATIENCE, caught_up).await.expect("the follower to catch up");
    }
}

fn engine(host: bool) -> Engine {
    let backend = BackendChoice::Cpu { threads: Some(1) };
    let backend = backend.open(&FetchOptions::default(), &mut ()).unwrap();
    let mut options = EngineOptions::default();
    options.page_size = Some(PAGE);
    options.kv_memory = KvMemory::Tokens(256);
    options.max_running_requests = Some(2);
    options.context_length = Some(96);
    options.cache_events = 100_000;
    if host {
        options.host_kv_memory = KvMemory::Tokens(512);
        options.host_min_load_tokens = 1;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied");
    Engine::builder().options(options).load(path, backend.as_ref(), &mut ()).unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Prompts of few beginnings, so that prefixes are found, and of enough to be evicted.
    fn prompt(&mut self) -> (u64, Vec<u32>) {
        let (tenant, beginning) = (self.below(3), self.below(6) as u32);
        let common = 4 * self.below(12) as usize;
        let length = common + 1 + self.below(30) as usize;
        let tokens = (0..length).map(|at| match at < common {
            true => 10 + (beginning * 7 + at as u32) % 90,
            false => 10 + self.below(90) as u32,
        });
        (tenant, tokens.collect())
    }
}

async fn start(engine: &Engine, buffer_steps: usize) -> KvEvents {
    let mut config = KvEventsConfig::default();
    config.endpoint = "tcp://127.0.0.1:0".to_owned();
    config.replay_endpoint = Some("tcp://127.0.0.1:0".to_owned());
    config.topic = "kv@".to_owned();
    (config.buffer_steps, config.data_parallel_rank) = (buffer_steps, 2);
    let names = Arc::new(|of: Namespace| (of.tenant == 1).then(|| "one".to_owned()));
    KvEvents::start(engine.clone(), config, Some(names)).await.unwrap()
}

/// Runs a request and compares what is found with what was foretold. Returns whether all that was
/// foretold was found: what is on the host alone may have to leave it while the engine makes room
/// for loading it.
fn check(engine: &Engine, follower: &Follower, random: &mut Random) -> bool {
    let (tenant, tokens) = random.prompt();
    let salt = ["", "one", "2:0"][tenant as usize];
    // One token is computed anew.
    let matched = &tokens[..tokens.len() - 1];
    let on_device = follower.cached(salt, matched, &["GPU"]);
    let foretold = follower.cached(salt, matched, &["GPU", "CPU_PINNED"]);
    let request = Request::new(Prompt::Tokens(tokens))
        .sampling(SamplingParams::greedy(1 + random.below(9) as u32))
        .namespace(Namespace::tenant(tenant));
    let output = engine.generate(request).unwrap().remove(0);
    let found = output.usage.cached_tokens as usize;
    assert!((on_device..=foretold).contains(&found), "{on_device} <= {found} <= {foretold}");
    found == foretold
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_foretells_what_the_engine_finds() {
    for host in [false, true] {
        let engine = engine(host);
        let events = start(&engine, 10_000).await;
        let mut follower = Follower::new(&events).await;
        let mut random = Random(5);
        let mut short = 0;
        for number in 0..150 {
            if number == 75 {
                engine.clear_cache().unwrap();
            }
            short += usize::from(!check(&engine, &follower, &mut random));
            follower.catch_up(&engine).await;
        }
        assert!(short <= if host { 15 } else { 0 }, "{short} of 150");
        assert!(engine.snapshot().scheduler.evicted_pages > 0);
        engine.shutdown(Shutdown::Now).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_late_or_misses_batches_becomes_exact() {
    let engine = engine(true);
    let mut random = Random(9);
    let nobody = |engine: &Engine, random: &mut Random, requests| {
        for _ in 0..requests {
            let (tenant, tokens) = random.prompt();
            let request = Request::new(Prompt::Tokens(tokens)).sampling(SamplingParams::greedy(3));
            engine.generate(request.namespace(Namespace::tenant(tenant))).unwrap();
        }
    };
    // Before anything is published, and before anybody subscribes.
    nobody(&engine, &mut random, 20);
    for buffer_steps in [10_000, 4] {
        let events = start(&engine, buffer_steps).await;
        nobody(&engine, &mut random, 20);
        for _ in 0..3 {
            let mut follower = Follower::new(&events).await;
            // A live batch shows what was missed.
            while follower.watermark.is_none() {
                nobody(&engine, &mut random, 1);
                follower.follow().await;
            }
            follower.catch_up(&engine).await;
            assert!(follower.replays > 0);
            for _ in 0..10 {
                check(&engine, &follower, &mut random);
                follower.catch_up(&engine).await;
            }
            // Batches that never came.
            let before = follower.replays;
            for _ in 0..30 {
                nobody(&engine, &mut random, 1);
                let _ = timeout(Duration::from_millis(20), follower.live.recv()).await;
            }
            while follower.replays == before {
                nobody(&engine, &mut random, 1);
                follower.follow().await;
            }
            follower.catch_up(&engine).await;
            check(&engine, &follower, &mut random);
        }
        drop(events);
    }
    engine.shutdown(Shutdown::Now).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_taken_or_none_is_an_error() {
    let engine = engine(false);
    let taken = start(&engine, 10).await;
    for endpoint in [taken.endpoint(), "tcp://nowhere", "udp://127.0.0.1:1", ""] {
        let mut config = KvEventsConfig::default();
        config.endpoint = endpoint.to_owned();
        let error = KvEvents::start(engine.clone(), config, None).await.unwrap_err();
        assert!(error.to_string().contains(endpoint), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_for_replays_leave_the_next_one_an_answer() {
    let engine = engine(false);
    let events = start(&engine, 10).await;
    let mut asker = DealerSocket::new();
    asker.connect(events.replay_endpoint().unwrap()).await.unwrap();
    for frames in [vec![Bytes::new()], vec![Bytes::from_static(b"123")], vec![Bytes::new(); 9]] {
        asker.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
    }
    let mut follower = Follower::new(&events).await;
    follower.ask(0).await;
    assert_eq!(follower.watermark, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_reads_no_replay_holds_nobody_up() {
    let engine = engine(false);
    let events = start(&engine, 10_000).await;
    let mut random = Random(3);
    for _ in 0..40 {
        let (tenant, tokens) = random.prompt();
        let request = Request::new(Prompt::Tokens(tokens)).sampling(SamplingParams::greedy(9));
        engine.generate(request.namespace(Namespace::tenant(tenant))).unwrap();
    }
    let mut stalled = DealerSocket::new();
    stalled.connect(events.replay_endpoint().unwrap()).await.unwrap();
    // More answers than the socket keeps for a peer.
    let frames = vec![Bytes::new(), Bytes::copy_from_slice(&0_u64.to_be_bytes())];
    for _ in 0..10_000 {
        stalled.send(ZmqMessage::try_from(frames.clone()).unwrap()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut follower = Follower::new(&events).await;
    timeout(Duration::from_secs(30), follower.ask(0)).await.expect("an answer");
    assert!(follower.watermark.is_some());
}
