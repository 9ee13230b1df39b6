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
    handles: HashMap<u64, (String, AbortHandle)>,
}

/// Keeps a request among those that run.
#[derive(Debug)]
pub(crate) struct Entered {
    running: Running,
    number: u64,
}

impl Running {
    pub(crate) fn enter(&self, rid: &str, handle: AbortHandle) -> Entered {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.handles.insert(number, (rid.to_owned(), handle));
        Entered { running: self.clone(), number }
    }

    /// Aborts the requests of an id, or all. Returns how many.
    pub(crate) fn abort(&self, rid: Option<&str>) -> usize {
        let state = self.lock();
        let chosen = state.handles.values().filter(|(own, _)| rid.is_none_or(|rid| own == rid));
        chosen.map(|(_, handle)| handle.abort()).count()
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
