//! Requests that run, by id: for those who abort them from elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understory::engine::AbortHandle;

/// All requests that run. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    handles: HashMap<u64, Request>,
}

#[derive(Debug)]
struct Request {
    rid: String,
    tenant: Option<String>,
    handle: AbortHandle,
}

/// Keeps a request among those that run.
#[derive(Debug)]
pub(crate) struct Entered {
    running: Running,
    number: u64,
}

impl Running {
    pub(crate) fn enter(&self, rid: &str, tenant: Option<&str>, handle: AbortHandle) -> Entered {
        let (rid, tenant) = (rid.to_owned(), tenant.map(str::to_owned));
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.handles.insert(number, Request { rid, tenant, handle });
        Entered { running: self.clone(), number }
    }

    /// Aborts the requests of an id, or all, of a tenant, or of all. Returns how many.
    pub(crate) fn abort(&self, rid: Option<&str>, tenant: Option<&str>) -> usize {
        let state = self.lock();
        let chosen = state.handles.values().filter(|request| {
            rid.is_none_or(|rid| request.rid == rid)
                && tenant.is_none_or(|tenant| request.tenant.as_deref() == Some(tenant))
        });
        chosen.map(|request| request.handle.abort()).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.running.lock().handles.remove(&self.number);
    }
}
