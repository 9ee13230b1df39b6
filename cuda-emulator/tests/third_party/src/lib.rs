//! Empty: the package names a dependency.
