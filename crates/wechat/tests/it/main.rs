//! The client against real sockets: what it sends, where it sends it twice, and what its errors
//! say.

#![cfg(test)]

mod failures;
mod hosts;
mod requests;
mod secured;
mod server;
