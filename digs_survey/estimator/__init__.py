"""The neural posterior estimator: features, network, training, frozen posterior, sampler."""
