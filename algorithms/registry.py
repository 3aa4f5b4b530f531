"""The algorithms by name; a file is imported only when its algorithm is asked for.

The command line, scenarios and the tests share this table.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib

from algorithms.algorithm import Algorithm


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an algorithm lives and what a list says about it.

    Attributes
    ----------
    module, object
        Where to import it from.
    summary
        What it does, in a line.
    paper
        Its source.
    traffic
        Bytes that a worker sends per iteration, on average; M is the model in bytes, n the workers, k the
        period, degree the neighbours. :meth:`Algorithm.traffic` computes them.
    staleness
        How old what an update uses is, and in what: 0, a given age, or what comes about.
    theory
        What is known of its convergence, and where.
    needs
        What a run must offer beside a network.
    epoch_traffic
        Bytes that a worker sends in addition at the beginning of every epoch, on average; B is bytes, N the
        elements of the model, P those of an inner value. :meth:`Algorithm.epoch_traffic` computes them.
    servers
        With which settings it has servers, which may be dedicated; empty where it never has any.
    """

    module: str
    object: str
    summary: str
    paper: str
    traffic: str
    staleness: str
    theory: str
    needs: str = ""
    epoch_traffic: str = ""
    servers: str = ""

    def load(self) -> type[Algorithm]:
        """Import the algorithm's class."""
        loaded: type[Algorithm] = getattr(importlib.import_module(self.module), self.object)
        return loaded


ALGORITHMS: dict[str, Entry] = {
    "allreduce-sgd": Entry(
        "algorithms.synchronous.allreduce_sgd",
        "AllReduceSGD",
        "synchronous SGD; buckets of the gradient are reduced while back-propagation goes on",
        "Li et al., VLDB 2020",
        "2(n-1)/n M",
        "0",
        "non-convex: 2D/(gT) + Lg s2/n",
    ),
    "local-sgd": Entry(
        "algorithms.local.local_sgd",
        "LocalSGD",
        "k local steps, then an average of the models",
        "Stich, ICLR 2019",
        "2(n-1)/n M/k",
        "0",
        "non-convex, drift window k-1 (Yu et al. 2019)",
    ),
    "cocod-sgd": Entry(
        "algorithms.local.cocod_sgd",
        "CoCoDSGD",
        "k local steps hide the average of the models as the round began",
        "Shen et al., IJCAI 2019",
        "2(n-1)/n M/k",
        "k steps, of the models",
        "non-convex, drift window 2k-1 (Shen et al. 2019, theorem 1)",
    ),
    "pipe-sgd": Entry(
        "algorithms.synchronous.pipe_sgd",
        "PipeSGD",
        "synchronous SGD with the mean gradient of the iteration before, whose reduction hides",
        "Li et al., NeurIPS 2018",
        "2(n-1)/n M",
        "K-1 iterations",
        "delayed gradient: s2 (K-1) g2 L2 / n besides S-SGD",
    ),
    "overlap-local-sgd": Entry(
        "algorithms.local.overlap_local_sgd",
        "OverlapLocalSGD",
        "k local steps hide an average that the models are pulled towards",
        "Wang et al., ICASSP 2020",
        "2(n-1)/n M/k",
        "k steps, of the average",
        "non-convex, column-stochastic mixing with an anchor (Wang et al. 2020)",
    ),
    "slowmo": Entry(
        "algorithms.local.slowmo",
        "SlowMo",
        "local SGD whose averages move a common model with momentum",
        "Wang et al., ICLR 2020",
        "2(n-1)/n M/k",
        "0",
        "non-convex, outer momentum (Wang et al. 2020, theorem 1)",
    ),
    "vrl-sgd": Entry(
        "algorithms.local.vrl_sgd",
        "VRLSGD",
        "local SGD that corrects what differs between the workers' data",
        "Liang et al., 2019",
        "2(n-1)/n M/k",
        "0",
        "non-convex, no term in the difference between data (Liang et al. 2019)",
    ),
    "easgd": Entry(
        "algorithms.local.easgd",
        "EASGD",
        "workers and a centre pull each other by elastic forces every k steps",
        "Zhang et al., NeurIPS 2015",
        "2(n-1)/n M/k",
        "visits of others",
        "quadratics (Zhang et al. 2015)",
        servers="rounds: asynchronous",
    ),
    "diloco": Entry(
        "algorithms.local.diloco",
        "DiLoCo",
        "k inner steps, then an outer step with Nesterov momentum on the mean movement",
        "Douillard et al., 2023",
        "2(n-1)/n M/k",
        "0",
        "none known for AdamW inside; SlowMo's with SGD",
    ),
    "streaming-diloco": Entry(
        "algorithms.local.diloco",
        "StreamingDiLoCo",
        "DiLoCo whose fragments are averaged in turn, behind the inner steps",
        "Douillard et al., 2025",
        "2(n-1)/n M/k",
        "tau steps, of a fragment",
        "none known",
    ),
    "d-psgd": Entry(
        "algorithms.decentralised.d_psgd",
        "DPSGD",
        "every worker averages with its neighbours on a graph in every step",
        "Lian et al., NeurIPS 2017",
        "degree M",
        "0",
        "non-convex, spectral gap (Lian et al. 2017)",
        needs="graph",
    ),
    "d2": Entry(
        "algorithms.decentralised.d2",
        "D2",
        "neighbour averaging with a correction that cancels differences between the workers' data",
        "Tang et al., ICML 2018",
        "degree M",
        "0",
        "non-convex, smallest eigenvalue above -1/3 (Tang et al. 2018)",
        needs="graph, symmetric",
    ),
    "choco-sgd": Entry(
        "algorithms.decentralised.choco_sgd",
        "ChocoSGD",
        "neighbour averaging by compressed differences from replicas that neighbours share",
        "Koloskova et al., ICML 2019",
        "degree M, or a codec's message",
        "0",
        "strongly convex, codecs that contract (Koloskova et al. 2019)",
        needs="graph, symmetric",
    ),
    "sgp": Entry(
        "algorithms.decentralised.sgp",
        "SGP",
        "push-sum gossip along a directed exponential graph, waiting or overlapped",
        "Assran et al., ICML 2019",
        "M + one element",
        "tau iterations",
        "non-convex, column-stochastic graphs (Assran et al. 2019)",
    ),
    "ad-psgd": Entry(
        "algorithms.decentralised.ad_psgd",
        "ADPSGD",
        "random pairs average atomically whenever they meet, beside the gradients",
        "Lian et al., ICML 2018",
        "M",
        "averagings during a gradient",
        "non-convex, bounded staleness (Lian et al. 2018)",
        needs="bipartite, symmetric",
    ),
    "pair-averaging": Entry(
        "algorithms.decentralised.pair_averaging",
        "PairAveraging",
        "a worker pulls a random peer's model and takes the mean of both",
        "Mai et al., OSDI 2020",
        "M",
        "what a peer has published",
        "none: the mean is not preserved",
    ),
    "parameter-server": Entry(
        "algorithms.servers.parameter_server",
        "ParameterServer",
        "synchronous SGD whose gradients meet at one or several servers",
        "Li et al., OSDI 2014",
        "2(n-1)/n M",
        "0",
        "as allreduce-sgd",
        servers="any",
    ),
    "a-psgd": Entry(
        "algorithms.servers.a_psgd",
        "APSGD",
        "asynchronous SGD: servers apply every gradient as it comes",
        "Lian et al., NeurIPS 2015",
        "2(n-1)/n M",
        "updates of others, about n-1",
        "non-convex, bounded staleness (Lian et al. 2015)",
        servers="any",
    ),
    "hogwild": Entry(
        "algorithms.servers.hogwild",
        "Hogwild",
        "workers on one machine change one shared model without a lock",
        "Niu et al., NeurIPS 2011",
        "0",
        "updates of others, about n-1",
        "convex, sparse gradients (Niu et al. 2011)",
        needs="shared-memory",
    ),
    "signsgd": Entry(
        "algorithms.signs.majority_vote",
        "SignSGD",
        "steps along the sign on which most workers agree: one bit per coordinate each way",
        "Bernstein et al., ICLR 2019",
        "2(n-1)/n M/32",
        "0",
        "non-convex, symmetric noise (Bernstein et al. 2018, 2019)",
        servers="meet: server",
    ),
    "signum": Entry(
        "algorithms.signs.majority_vote",
        "Signum",
        "signSGD with majority vote and momentum before the sign",
        "Bernstein et al., ICLR 2019",
        "2(n-1)/n M/32",
        "0",
        "non-convex, after a warm-up (Bernstein et al. 2018, theorem 3)",
        servers="meet: server",
    ),
    "dp-sgd": Entry(
        "algorithms.private.private_sgd",
        "PrivateSGD",
        "private SGD: gradients of single samples are clipped, noise is added to their sum",
        "Abadi et al., CCS 2016",
        "2(n-1)/n M",
        "0",
        "non-convex, clipping bias (Abadi et al. 2016; Yang et al. 2022)",
        needs="finite-sum",
    ),
    "nsgd": Entry(
        "algorithms.private.private_sgd",
        "NSGD",
        "private SGD that normalises the gradient of every sample",
        "Yang et al., 2022",
        "2(n-1)/n M",
        "0",
        "non-convex, (L0, L1)-smooth (Yang et al. 2022)",
        needs="finite-sum",
    ),
    "auto-s": Entry(
        "algorithms.private.private_sgd",
        "AutoS",
        "private SGD with automatic clipping",
        "Bu et al., NeurIPS 2023",
        "2(n-1)/n M",
        "0",
        "non-convex, symmetric noise (Bu et al. 2023)",
        needs="finite-sum",
    ),
    "dp-psac": Entry(
        "algorithms.private.private_sgd",
        "DPPSAC",
        "private SGD with per-sample adaptive clipping",
        "Xia et al., AAAI 2023",
        "2(n-1)/n M",
        "0",
        "non-convex, smaller bias than nsgd (Xia et al. 2023)",
        needs="finite-sum",
    ),
    "svrg": Entry(
        "algorithms.variance_reduced.katyusha_x",
        "SVRG",
        "epochs of gradients corrected by those at a snapshot",
        "Johnson & Zhang, NeurIPS 2013",
        "2(n-1)/n M",
        "0",
        "strongly convex, parts not convex (Allen-Zhu 2018)",
        needs="finite-sum",
        epoch_traffic="2(n-1)/n M",
    ),
    "katyusha-x": Entry(
        "algorithms.variance_reduced.katyusha_x",
        "KatyushaX",
        "svrg with momentum between its epochs, by default that of a convex sum; tau = 0.5 is svrg",
        "Allen-Zhu, ICML 2018",
        "2(n-1)/n M",
        "0",
        "(strongly) convex, parts not convex, b up to sqrt n (Allen-Zhu 2018)",
        needs="finite-sum",
        epoch_traffic="2(n-1)/n M",
    ),
    "asyvrsc-shared": Entry(
        "algorithms.compositional.asyvrsc_shared",
        "AsyVRSCShared",
        "lock-free variance-reduced updates for compositional problems in shared memory",
        "Shen et al., 2018 (reconstruction)",
        "0",
        "updates of others",
        "strongly convex, linear; constants unknown (Shen et al. 2018)",
        needs="compositional, shared-memory",
        epoch_traffic="2(n-1)/n (4(2P + PN) + 4) B",
    ),
    "asyvrsc-distributed": Entry(
        "algorithms.compositional.asyvrsc_distributed",
        "AsyVRSCDistributed",
        "asynchronous variance-reduced updates for compositional problems by a master",
        "Shen et al., 2018 (reconstruction)",
        "2(n-1)/n M",
        "updates of others",
        "strongly convex, linear; constants unknown (Shen et al. 2018)",
        needs="compositional",
        epoch_traffic="(n-1)/n 4(N + 3P + 2PN) B",
        servers="any",
    ),
}


def algorithm(name: str) -> type[Algorithm]:
    """Return the class of the algorithm called ``name``.

    Raises
    ------
    ValueError
        No such algorithm; the message names the nearest one.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown algorithm '{name}'; the nearest is '{near}'")
    return ALGORITHMS[name].load()
