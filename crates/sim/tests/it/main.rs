//! The simulated WeChat, rule by rule, over real sockets and paused time.
#![cfg(test)]

mod callbacks;
mod content;
mod control;
mod faults;
mod grant_rules;
mod guide;
mod harness;
mod mini;
mod pages;
mod quotas;
mod robust;
mod sns;
mod stable_rules;
mod tokens;
mod users;
