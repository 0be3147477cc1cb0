//! The real binaries and the real programs in network namespaces with firewalls.
