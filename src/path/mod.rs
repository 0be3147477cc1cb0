//! Which way to reach one peer: routes, candidates, probes, choice.

pub mod route;
