//! How operators talk to the process.

use std::future::Future;
use std::{io, process, thread};

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use understory_server::config::Keys;

/// Ready at the first SIGINT (Ctrl-C) or SIGTERM. The second one ends the process at once, with the code that shells
/// give such an end. SIGHUP reads the keys again. All are watched from the call on, on a thread of their own.
///
/// # Errors
///
/// The system can't tell about signals, or start a thread.
pub(crate) fn listen(keys: Keys) -> io::Result<impl Future<Output = ()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            signals.next(&keys).await;
            // Who no longer waits has nothing to finish.
            let _ = sender.send(());
            process::exit(128 + signals.next(&keys).await);
        })
    })?;
    Ok(async { drop(receiver.await) })
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next signal that ends the process.
    async fn next(&mut self, keys: &Keys) -> i32 {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return 2,
                _ = self.terminate.recv() => return 15,
                _ = self.hang_up.recv() => match keys.reload() {
                    Ok(()) => tracing::info!("the API keys were read again"),
                    Err(error) => tracing::error!(%error, "the API keys stay as they were"),
                },
            }
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

    async fn next(&mut self, _keys: &Keys) -> i32 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        2
    }
}
