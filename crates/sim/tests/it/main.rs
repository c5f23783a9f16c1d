//! The simulated WeChat, rule by rule, over real sockets and paused time.
#![cfg(test)]

mod control;
mod faults;
mod harness;
mod quotas;
mod robust;
mod stable_rules;
mod tokens;
mod users;
