//! The names of namespaces, which are numbers to the engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use understory::Namespace;

/// Names by number, for as many namespaces as a router can be told of. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces {
    names: Arc<Mutex<HashMap<Namespace, String>>>,
}

impl Namespaces {
    /// Clients may make up salts without end: those beyond so many stay without a name.
    const MOST: usize = 1 << 16;

    /// Takes note of a namespace that a request is in.
    pub(crate) fn note(&self, namespace: Namespace, tenant: Option<&str>, salt: Option<&str>) {
        let name = match (tenant, salt) {
            (None, None) => return,
            (Some(name), None) | (None, Some(name)) => name.to_owned(),
            (Some(tenant), Some(salt)) => format!("{tenant}/{salt}"),
        };
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < Self::MOST {
            names.insert(namespace, name);
        }
    }

    /// The name of a namespace.
    pub(crate) fn name(&self, namespace: Namespace) -> Option<String> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(&namespace).cloned()
    }
}
