//! The one driver of the process, and how calls reach it.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, OnceLock};

use cuda_emulator::check::{Report, Severity};
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

/// Runs a call that needs no context.
pub(crate) fn call(f: impl FnOnce(&mut Driver) -> Answer<()>) -> u32 {
    guarded(|| {
        let mut driver = driver();
        if !driver.is_initialized() {
            return Err(Status::NOT_INITIALIZED);
        }
        f(&mut driver)
    })
}

/// Runs a call that may come before `cuInit`.
pub(crate) fn early_call(f: impl FnOnce(&mut Driver) -> Answer<()>) -> u32 {
    guarded(|| f(&mut driver()))
}

/// Runs a call on the device of the thread's context. Once the device has failed, all calls give
/// that error.
pub(crate) fn device_call(f: impl FnOnce(&mut Driver, usize) -> Answer<()>) -> u32 {
    call(|driver| {
        let device = driver.context_device(context())?;
        match driver.sticky(device) {
            Some(status) => Err(status),
            None => f(driver, device),
        }
    })
}

/// A panic must not cross into C.
fn guarded(f: impl FnOnce() -> Answer<()>) -> u32 {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => Status::SUCCESS.0,
        Ok(Err(status)) => status.0,
        Err(_) => Status::UNKNOWN.0,
    }
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
