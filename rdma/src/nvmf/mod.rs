//! NVMe over Fabrics: capsules, initiator and target, bound to TCP.
