//! How the user ends a program that has something to finish.

use std::future::Future;
use std::{io, process, thread};

use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Ready at the first SIGINT (Ctrl-C) or SIGTERM. The second one ends the process at once, with
/// the code that shells give such an end. They are watched from the call on, on a thread of its
/// own, so no runtime is needed and a busy one delays neither.
///
/// # Errors
///
/// The system can't tell about signals, or start a thread.
pub(crate) fn first_signal() -> io::Result<impl Future<Output = ()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            signals.next().await;
            // Who no longer waits has nothing to finish.
            let _ = sender.send(());
            process::exit(128 + signals.next().await);
        })
    })?;
    Ok(async {
        let _ = receiver.await;
    })
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    /// The number of the signal that comes next.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> i32 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        2
    }
}
