//! Serves models over the field's protocols.
