//! The backend's own threads: fork, do numbered tasks, join.
//!
//! A step of a small model is some two hundred parallel regions of a few microseconds each, so
//! what counts is how soon a worker that has nothing to do notices that there is something. A
//! worker spins for some tens of microseconds after its last task, then parks: within a step
//! it is always awake, and between steps it costs nothing. Tasks are claimed one at a time from
//! a counter, so a thread that the operating system takes away delays one task only. Which
//! thread does a task never changes its result.

use std::{
    any::Any,
    cell::UnsafeCell,
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;

/// Turns of the spin loop before a worker parks; a turn is a `PAUSE`, 10 to 30 ns.
const SPINS_BEFORE_PARK: usize = 4_000;
/// Turns after which whoever waits for the last task lets others run in between.
const SPINS_BEFORE_YIELD: usize = 2_000;

/// Values below which an operation on rows isn't worth a parallel region.
const SERIAL_VALUES: usize = 8 * 1024;

/// A panic in a task, caught. The other tasks of that region may not have been done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("a kernel panicked: {message}")]
pub(crate) struct TaskPanicked {
    /// What it said.
    pub(crate) message: String,
}

/// Threads that do numbered tasks. Dropping it ends them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`run`](Self::run) being one of them. The
    /// others are named `{name}-1` and so on.
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub(crate) fn new(name: &str, threads: usize) -> io::Result<Self> {
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            region: UnsafeCell::new(None),
            generation: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(workers) };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("{name}-{worker}"))
                .spawn(move || shared.serve(worker))?;
            pool.workers.push(thread);
        }
        Ok(pool)
    }

    /// Threads that work, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(task)` once for each task below `tasks`, on the caller's thread alone.
    ///
    /// # Errors
    /// If a call panicked: then the tasks after it were left out.
    pub(crate) fn run_here(tasks: usize, work: &dyn Fn(usize)) -> Result<(), TaskPanicked> {
        catch_unwind(AssertUnwindSafe(|| (0..tasks).for_each(work)))
            .map_err(|panic| TaskPanicked { message: message_of(&*panic) })
    }

    /// Calls `work(thread, task)` once for each task below `tasks`, and returns when all are
    /// done. `thread` is below [`threads`](Self::threads), and no two calls that run at the same
    /// time are given the same one.
    ///
    /// # Errors
    /// If a call panicked: then some tasks may have been left out.
    pub(crate) fn run(
        &mut self,
        tasks: usize,
        work: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<(), TaskPanicked> {
        if tasks <= 1 || self.workers.is_empty() {
            return Self::run_here(tasks, &|task| work(0, task));
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker keeps the reference after this call: it
        // is read only between raising and lowering `inside`, and `run` closes the region
        // and then waits for `inside` to be zero before it returns.
        let work = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        // SAFETY: no worker reads the cell now: the region is closed and `inside` was seen to be
        // zero after it was closed. `&mut self` keeps other callers out.
        unsafe { *shared.region.get() = Some(Region { work, tasks }) };
        shared.next.store(0, SeqCst);
        shared.open.store(true, SeqCst);
        shared.generation.fetch_add(1, SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep).take(tasks - 1) {
            if asleep.load(SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.work_on(Region { work, tasks }, 0);
        shared.open.store(false, SeqCst);
        let mut spins = 0;
        while shared.inside.load(SeqCst) != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        match shared.panic.lock().take() {
            Some(message) => Err(TaskPanicked { message }),
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.generation.fetch_add(1, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what its tasks throw, so there is nothing to report.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// Calls `work` with ranges of rows that together are all of them, in parallel if that pays.
///
/// # Errors
/// If a call panicked.
pub(crate) fn for_rows(
    pool: &mut Pool,
    rows: usize,
    width: usize,
    work: &(dyn Fn(Range<usize>) + Sync),
) -> Result<(), TaskPanicked> {
    let wanted = (rows * width / (SERIAL_VALUES / 2)).clamp(1, pool.threads() * 2);
    let rows_per_task = rows.div_ceil(wanted).max(1);
    pool.run(rows.div_ceil(rows_per_task), &|_, task| {
        let start = task * rows_per_task;
        work(start..(start + rows_per_task).min(rows));
    })
}

type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

#[derive(Clone, Copy)]
struct Region {
    work: &'static Work<'static>,
    tasks: usize,
}

struct Shared {
    /// What is to be done; written only while the region is closed and nobody is inside.
    region: UnsafeCell<Option<Region>>,
    /// Goes up when there is something to look at.
    generation: AtomicUsize,
    /// Whether `region` may be read by those that are inside.
    open: AtomicBool,
    stop: AtomicBool,
    /// Workers that may be reading `region` or doing its tasks.
    inside: AtomicUsize,
    /// The next task to claim.
    next: AtomicUsize,
    asleep: Vec<AtomicBool>,
    panic: Mutex<Option<String>>,
}

// SAFETY: `region` is the only field that isn't Sync by itself. It is written by the one caller of
// `Pool::run` while no worker may read it, and read by workers that first raised `inside` and
// then saw `open`, both sequentially consistent: so a writer that closed the region and
// then saw `inside` at zero can't have a reader, and a reader sees what was written before.
unsafe impl Sync for Shared {}

// SAFETY: as for Sync; what `region` points to is Sync.
unsafe impl Send for Shared {}

impl Shared {
    /// A worker's life.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_generation(seen, worker);
            if self.stop.load(SeqCst) {
                return;
            }
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                // SAFETY: this worker is inside and saw the region open: see `Sync` above.
                if let Some(region) = unsafe { *self.region.get() } {
                    self.work_on(region, worker);
                }
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Waits until the generation is no longer `seen`, and returns it.
    fn next_generation(&self, seen: usize, worker: usize) -> usize {
        for _ in 0..SPINS_BEFORE_PARK {
            let generation = self.generation.load(SeqCst);
            if generation != seen {
                return generation;
            }
            std::hint::spin_loop();
        }
        let asleep = &self.asleep[worker - 1];
        loop {
            // Announced before the last look, as the caller raises the generation before it
            // looks who sleeps: one of the two sees the other.
            asleep.store(true, SeqCst);
            let generation = self.generation.load(SeqCst);
            if generation != seen {
                asleep.store(false, SeqCst);
                return generation;
            }
            thread::park();
        }
    }

    /// Claims and does tasks until none is left. A panic ends the region.
    fn work_on(&self, region: Region, thread: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, SeqCst);
                if task >= region.tasks {
                    break;
                }
                (region.work)(thread, task);
            }
        }));
        if let Err(panic) = result {
            self.next.store(region.tasks, SeqCst);
            self.panic.lock().get_or_insert_with(|| message_of(&*panic));
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64};

    use super::*;

    #[test]
    fn every_task_is_done_exactly_once_in_many_regions() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new("test", threads).unwrap();
            for region in 0..300 {
                let tasks = region % 17;
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, &|_, task| {
                    counts[task].fetch_add(1, SeqCst);
                })
                .unwrap();
                assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
            }
        }
    }

    #[test]
    fn parked_workers_wake_for_the_next_region() {
        let mut pool = Pool::new("test", 3).unwrap();
        let sum = AtomicU64::new(0);
        for _ in 0..3 {
            while !pool.shared.asleep.iter().all(|asleep| asleep.load(SeqCst)) {
                thread::yield_now();
            }
            pool.run(100, &|_, task| {
                sum.fetch_add(task as u64, SeqCst);
                thread::yield_now();
            })
            .unwrap();
            for asleep in &pool.shared.asleep {
                // Those that found no task left have gone back to sleep, or will.
                let _ = asleep.load(SeqCst);
            }
        }
        assert_eq!(sum.load(SeqCst), 3 * 4950);
    }

    #[test]
    fn no_two_tasks_at_once_are_given_the_same_thread() {
        let mut pool = Pool::new("test", 4).unwrap();
        let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
        for _ in 0..50 {
            pool.run(64, &|thread, _| {
                assert!(!busy[thread].swap(true, SeqCst));
                thread::yield_now();
                busy[thread].store(false, SeqCst);
            })
            .unwrap();
        }
    }

    #[test]
    fn a_panic_in_a_task_is_an_error_and_the_pool_goes_on() {
        for threads in [1, 2, 4] {
            let mut pool = Pool::new("test", threads).unwrap();
            let failed = pool.run(8, &|_, task| assert!(task != 5, "task five"));
            assert!(failed.unwrap_err().message.contains("task five"));
            let done = AtomicU32::new(0);
            pool.run(8, &|_, _| {
                done.fetch_add(1, SeqCst);
            })
            .unwrap();
            assert_eq!(done.load(SeqCst), 8);
        }
    }
}
