//! The server as its clients see it, over loopback.

mod clients;
mod control;
mod protocols;
mod reports;
mod shapes;
mod support;
mod tools;
