//! The one driver of the process, and how calls reach it.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use cuda_emulator::check::{Report, Severity};
use cuda_emulator::driver::blas::BlasStatus;
use cuda_emulator::driver::nccl::NcclStatus;
use cuda_emulator::driver::{Answer, Config, Driver, Status};

/// A context, stream, event or the like: a pointer to the program, a number here.
pub(crate) type Handle = u64;

thread_local! {
    /// The context of the thread; 0 for none.
    static CONTEXT: Cell<Handle> = const { Cell::new(0) };
}

pub(crate) fn context() -> Handle {
    CONTEXT.get()
}

pub(crate) fn set_context(context: Handle) {
    CONTEXT.set(context);
}

/// The driver. The interface has no handle for it, so there is one for the process.
fn driver() -> MutexGuard<'static, Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    let lock = DRIVER.get_or_init(|| {
        let config = Config::read(|name| std::env::var(name).ok()).unwrap_or_else(|wrong| {
            say(&format!("{wrong} can't be used; going on without"));
            Config::default()
        });
        let reports = config.reports.clone();
        let listener = move |report: &Report| match &reports {
            Some(path) => append(path, report),
            None if report.severity > Severity::Advice => say(&report.to_string()),
            None => {}
        };
        Mutex::new(Driver::new(config, Box::new(listener)))
    });
    lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn append(path: &std::path::Path, report: &Report) {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{}", report.to_json()));
    if let Err(error) = written {
        say(&format!("{}: {error}", path.display()));
    }
}

/// Writes a line to the standard error. That it can't be written must not stop the program.
pub(crate) fn say(text: &str) {
    _ = writeln!(std::io::stderr(), "cuda-emulator: {text}");
}

/// Whoever waits for another rank's thread listens here for what other threads do.
static CHANGED: Condvar = Condvar::new();

/// A result code of one of the libraries.
pub(crate) trait Code: Copy + PartialEq {
    const SUCCESS: Self;
    /// The call waits for another rank and is to be made again.
    const BLOCKED: Self;
    /// A panic came out of the call.
    const INTERNAL: Self;
    /// The rank that the call waits for doesn't come.
    const GIVEN_UP: Self;
    fn number(self) -> u32;
}

impl Code for Status {
    const SUCCESS: Self = Self::SUCCESS;
    const BLOCKED: Self = Self::BLOCKED;
    const INTERNAL: Self = Self::UNKNOWN;
    const GIVEN_UP: Self = Self::TIMEOUT;
    fn number(self) -> u32 {
        self.0
    }
}

impl Code for BlasStatus {
    const SUCCESS: Self = Self::SUCCESS;
    const BLOCKED: Self = Self(Status::BLOCKED.0);
    const INTERNAL: Self = Self::INTERNAL_ERROR;
    const GIVEN_UP: Self = Self::EXECUTION_FAILED;
    fn number(self) -> u32 {
        self.0
    }
}

impl Code for NcclStatus {
    const SUCCESS: Self = Self::SUCCESS;
    const BLOCKED: Self = Self::BLOCKED;
    const INTERNAL: Self = Self::INTERNAL_ERROR;
    const GIVEN_UP: Self = Self::SYSTEM_ERROR;
    fn number(self) -> u32 {
        self.0
    }
}

/// Runs a call of a library. One that waits for other ranks is made again whenever something has
/// happened; when nothing does for as long as the configuration says, those ranks are given up.
pub(crate) fn library_call<C: Code>(mut f: impl FnMut(&mut Driver) -> Result<(), C>) -> u32 {
    guarded(|| {
        let mut driver = driver();
        let mut seen = driver.progress();
        let mut until = Instant::now() + driver.patience();
        let mut given_up = false;
        loop {
            let result = f(&mut driver);
            if result != Err(C::BLOCKED) {
                CHANGED.notify_all();
                return result;
            }
            if driver.progress() != seen {
                // What was done so far may be what others wait for.
                CHANGED.notify_all();
                seen = driver.progress();
                until = Instant::now() + driver.patience();
            }
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let woken = CHANGED.wait_timeout(driver, left);
                driver = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            } else if given_up {
                return Err(C::GIVEN_UP);
            } else {
                driver.give_up_ranks();
                given_up = true;
            }
        }
    })
}

/// Runs a call of the driver that needs no context.
pub(crate) fn call(mut f: impl FnMut(&mut Driver) -> Answer<()>) -> u32 {
    library_call(|driver| {
        if !driver.is_initialized() {
            return Err(Status::NOT_INITIALIZED);
        }
        f(driver)
    })
}

/// Runs a call of the driver that may come before `cuInit`.
pub(crate) fn early_call(f: impl FnMut(&mut Driver) -> Answer<()>) -> u32 {
    library_call(f)
}

/// Runs a call on the device of the thread's context. Once the device has failed, all calls give
/// that error.
pub(crate) fn device_call(mut f: impl FnMut(&mut Driver, usize) -> Answer<()>) -> u32 {
    call(|driver| {
        let device = driver.context_device(context())?;
        match driver.sticky(device) {
            Some(status) => Err(status),
            None => f(driver, device),
        }
    })
}

/// A panic must not cross into C.
fn guarded<C: Code>(f: impl FnOnce() -> Result<(), C>) -> u32 {
    let code = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => C::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => C::INTERNAL,
    };
    code.number()
}

/// Writes a result through a pointer of the program.
///
/// # Safety
///
/// `to` is null or can be written.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Answer<()> {
    if to.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller vouches for it.
    unsafe { to.write(value) };
    Ok(())
}
