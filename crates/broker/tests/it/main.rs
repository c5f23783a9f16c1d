#![cfg(test)]
//! The broker against the simulated WeChat, over real sockets, in simulated time.

mod chaos;
mod day;
mod grant;
mod grant_model;
mod harness;
mod login;
mod manage;
mod mini;
mod model;
mod passes;
mod refresh;
mod replicas;
mod report;
mod ticket;
mod trouble;
