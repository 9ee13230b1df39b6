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
        let Some(name) = name(tenant, salt) else { return };
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

/// `TENANT/SALT`. Without a tenant, the salt alone as the request has it, unless that would look like a tenant's.
fn name(tenant: Option<&str>, salt: Option<&str>) -> Option<String> {
    match (tenant, salt) {
        (None, None) => None,
        (None, Some(salt)) if !salt.contains('/') => Some(salt.to_owned()),
        (tenant, salt) => {
            let tenant = tenant.unwrap_or_default().replace('%', "%25").replace('/', "%2F");
            Some(format!("{tenant}/{}", salt.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_namespaces_share_a_name() {
        let words =
            [None, Some("a"), Some("b"), Some("a/b"), Some("b/a"), Some("a%2Fb"), Some("/a")];
        let pairs = words.iter().flat_map(|tenant| words.map(|salt| (*tenant, salt)));
        let names: BTreeSet<_> = pairs.map(|(tenant, salt)| name(tenant, salt)).collect();
        assert_eq!(names.len(), words.len() * words.len());
        assert_eq!(name(None, Some("salt")).as_deref(), Some("salt"));
        assert_eq!(name(Some("alice"), Some("salt")).as_deref(), Some("alice/salt"));
    }
}
