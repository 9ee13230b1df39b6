//! Events: something that the plugin will complete, and ways to hear of it.

use std::{ffi::c_void, fmt, sync::Arc, time::Instant};

use parking_lot::{Condvar, Mutex};

use super::{
    PjrtError, Plugin,
    plugin::{arguments, call, destroy},
    sys,
};

/// A pending event of the plugin. Dropping it forgets the event, not the work behind it.
pub struct Event {
    plugin: Plugin,
    raw: *mut sys::PJRT_Event,
}

// SAFETY: an event may be used from any thread; this handle is its only owner.
unsafe impl Send for Event {}
// SAFETY: the functions that take `&self` only read.
unsafe impl Sync for Event {}

impl Event {
    /// Takes ownership of an event of `plugin`.
    ///
    /// # Safety
    ///
    /// `raw` is an event of `plugin` that nothing else destroys.
    pub(super) unsafe fn from_raw(plugin: &Plugin, raw: *mut sys::PJRT_Event) -> Self {
        Self { plugin: plugin.clone(), raw }
    }

    /// Whether the event has completed, successfully or not.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn is_ready(&self) -> Result<bool, PjrtError> {
        let mut arguments = arguments!(PJRT_Event_IsReady_Args { event: self.raw });
        // SAFETY: the event is alive.
        unsafe { call!(self.plugin, PJRT_Event_IsReady, arguments) }?;
        Ok(arguments.is_ready)
    }

    /// Calls `callback` once, with the outcome, when the event completes: at once on this thread
    /// if it already has, else on a thread of the plugin, where it must not block.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`] if the callback can't be registered; it is
    /// then never called.
    pub fn on_ready<F>(self, callback: F) -> Result<(), PjrtError>
    where
        F: FnOnce(Result<(), PjrtError>) + Send + 'static,
    {
        struct Registration<F> {
            event: Event,
            callback: F,
        }

        unsafe extern "C" fn completed<F>(error: *mut sys::PJRT_Error, user: *mut c_void)
        where
            F: FnOnce(Result<(), PjrtError>) + Send + 'static,
        {
            // SAFETY: `user` is the box made below, and the plugin calls back once.
            let registration = unsafe { Box::from_raw(user.cast::<Registration<F>>()) };
            let Registration { event, callback } = *registration;
            let outcome = event.plugin.check("PJRT_Event_OnReady", error);
            drop(event);
            // A panic must not unwind into the plugin. The hook has already reported it, and
            // whoever waits for this callback has a deadline.
            let guarded = std::panic::AssertUnwindSafe(|| callback(outcome));
            if std::panic::catch_unwind(guarded).is_err() {
                tracing::error!("a callback of a PJRT event panicked");
            }
        }

        let plugin = self.plugin.clone();
        let raw = self.raw;
        let user = Box::into_raw(Box::new(Registration { event: self, callback }));
        let mut arguments = arguments!(PJRT_Event_OnReady_Args {
            event: raw,
            callback: Some(completed::<F>),
            user_arg: user.cast(),
        });
        // SAFETY: the event lives until the callback drops it.
        unsafe {
            call!(plugin, PJRT_Event_OnReady, arguments).inspect_err(|_| {
                // Not registered, so the box was not taken.
                drop(Box::from_raw(user));
            })
        }
    }

    /// Turns the event into something that can be waited for with a deadline, from many places.
    /// `what` names it in a timeout's message.
    ///
    /// # Errors
    ///
    /// As [`Event::on_ready`].
    pub fn completion(self, what: &'static str) -> Result<Completion, PjrtError> {
        let completion = Completion::pending(what);
        let setter = completion.clone();
        self.on_ready(move |outcome| setter.set(outcome))?;
        Ok(completion)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let mut arguments = arguments!(PJRT_Event_Destroy_Args { event: self.raw });
        // SAFETY: this is the event's only owner.
        unsafe { destroy!(self.plugin, PJRT_Event_Destroy, arguments) };
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Event").field("ready", &self.is_ready()).finish()
    }
}

/// The outcome of an event: pending, then done or failed for ever. Clones share it.
#[derive(Clone, Debug)]
pub struct Completion {
    what: &'static str,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    outcome: Mutex<Option<Result<(), PjrtError>>>,
    changed: Condvar,
}

impl Completion {
    pub(super) fn pending(what: &'static str) -> Self {
        Self { what, shared: Arc::default() }
    }

    pub(super) fn set(&self, outcome: Result<(), PjrtError>) {
        *self.shared.outcome.lock() = Some(outcome);
        self.shared.changed.notify_all();
    }

    /// The outcome, if there is one yet.
    pub fn outcome(&self) -> Option<Result<(), PjrtError>> {
        self.shared.outcome.lock().clone()
    }

    /// Waits until the event completes, or the deadline passes if there is one.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Timeout`] at the deadline, with the work still under way; else whatever error
    /// the event carries.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<(), PjrtError> {
        let mut outcome = self.shared.outcome.lock();
        loop {
            if let Some(outcome) = outcome.as_ref() {
                return outcome.clone();
            }
            match deadline {
                None => self.shared.changed.wait(&mut outcome),
                Some(deadline) => {
                    let waited = self.shared.changed.wait_until(&mut outcome, deadline);
                    if waited.timed_out() && outcome.is_none() {
                        return Err(PjrtError::Timeout { what: self.what });
                    }
                }
            }
        }
    }
}
