"""Tuning jobs: the trials are real training jobs; what to try next is proposed by Optuna.

How this differs from Amazon's own optimiser, which is not public:

- Bayesian is a tree-structured Parzen estimator with a constant liar for trials that run side by side; AWS fits a
  Gaussian process. Both begin at random, here for the first four trials.
- Random draws independently, as on AWS; the same RandomSeed gives the same values here, and others than on AWS.
- Grid goes through the combinations in the order of the request; AWS documents no order.
- Hyperband is Optuna's: asynchronous successive halving with reduction factor 3 in several brackets, values at random.
- Scaling `Auto` means logarithmic when a range is positive and spans a factor of 1000 or more, else linear.
- Early stopping `Auto` is the rule that AWS documents (a value worse than the median of the running averages of the
  trials that have completed), once three trials have completed, for trials that have trained for half a minute.
- Convergence (CompleteOnConvergence) is never detected, and Autotune and several training job definitions are refused.

As on AWS, a trial's objective is the last value that its MetricDefinition finds in its log.
"""
