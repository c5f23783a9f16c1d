//! Tests of the server at its borders.
#![cfg(test)]

mod gate;
mod harness;
mod process;

mod canary;
mod carrying;
mod cli;
mod cluster;
mod compatible;
mod config;
mod demo;
mod faults;
mod grants;
mod guide;
mod intercept;
mod kill;
mod kill_logins;
mod listener;
mod loops;
mod malformed;
mod metrics;
mod mini;
mod oauth;
mod openapi;
mod policy;
mod replay;
mod report;
mod sdk;
mod tickets;
mod token;
mod upstream;
mod users;
