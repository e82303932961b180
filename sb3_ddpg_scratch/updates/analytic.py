"""
The update with both losses' gradients written out by hand, for actors and critics that are plain MLPs.

``forward`` and ``backward`` of a layer stand side by side in :class:`Mlp`. With z = x W' + b, h = f(z) and a gradient
dL/dh, the chain rule is ``dL/dz = dL/dh f'(z)``, ``dL/dW = (dL/dz)' x``, ``dL/db = sum over the batch of dL/dz`` and
``dL/dx = dL/dz W`` (' is the transpose). Everything is written into memory made once, parameters and moments are flat
vectors (:mod:`~sb3_ddpg_scratch.updates.flat`), and gradients that no step uses are not computed: none of the critic's
parameters in the actor's step, none of the observation.

Arrays are NumPy's, whose calls take least time, over memory that is torch's; what is large is multiplied and activated by
torch, whose loops are faster.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import Batches
from sb3_ddpg_scratch.updates.flat import FlatAdam
from sb3_ddpg_scratch.updates.handwritten import HandWrittenUpdater
from sb3_ddpg_scratch.updates.interface import UpdateSettings
from sb3_ddpg_scratch.updates.products import Libraries, Product, settings_kept

# Values of a layer for one batch, from which on torch activates them.
LARGE = 2**14


def relu_backward(h: np.ndarray, h_grad: np.ndarray, slope: np.ndarray, z_grad: np.ndarray) -> None:
    """
    ``dL/dz = dL/dh [h > 0]``.

    :param h: relu(z)
    :param h_grad: dL/dh, of the same shape
    :param slope: memory of this shape
    :param z_grad: where dL/dz is written
    """
    np.sign(h, out=slope)
    np.multiply(h_grad, slope, out=z_grad)


def tanh_backward(h: np.ndarray, h_grad: np.ndarray, slope: np.ndarray, z_grad: np.ndarray) -> None:
    """
    ``dL/dz = dL/dh (1 - h^2)``.

    :param h: tanh(z)
    :param h_grad: dL/dh, of the same shape
    :param slope: memory of this shape
    :param z_grad: where dL/dz is written
    """
    np.multiply(h, h, out=slope)
    np.subtract(1, slope, out=slope)
    np.multiply(h_grad, slope, out=z_grad)


class Activation:
    """
    ReLU or tanh of a hidden layer, in place: ``forward()`` from z to h, ``backward()`` from dL/dh to dL/dz.

    :param output: z and h, shape ``(batch, n_out)``; a view
    :param output_grad: dL/dh and dL/dz, of the same shape
    :param tanh: tanh instead of ReLU
    """

    def __init__(self, output: th.Tensor, output_grad: th.Tensor, tanh: bool) -> None:
        self.forward: Callable[[], object]
        self.backward: Callable[[], object]
        if output.numel() >= LARGE:
            aten, out = th.ops.aten, {"grad_input": output_grad}
            self.forward = output.tanh_ if tanh else output.relu_
            self.backward = (
                partial(aten.tanh_backward.grad_input, output_grad, output, **out)
                if tanh
                else partial(aten.threshold_backward.grad_input, output_grad, output, 0, **out)
            )
        else:
            h, grad = output.numpy(), output_grad.numpy()
            zero = np.zeros((), grad.dtype)
            self.forward = partial(np.tanh, h, out=h) if tanh else partial(np.maximum, h, zero, out=h)
            self.backward = partial(tanh_backward if tanh else relu_backward, h, grad, np.empty_like(grad), grad)


class Layer:
    """
    One layer's memory and products.

    :param weight: parameters, shape ``(n_out, n_in)``
    :param bias: parameters, shape ``(n_out,)``
    :param x: input, shape ``(batch, n_in)``; a view
    :param output: memory for the output, shape ``(batch, n_out)``; a view
    :param grads: memory for the gradients of weight and bias; ``None`` if they are never asked for
    :param libraries: what the products go to
    """

    def __init__(
        self,
        weight: th.Tensor,
        bias: th.Tensor,
        x: th.Tensor,
        output: th.Tensor,
        grads: tuple[th.Tensor, th.Tensor] | None,
        libraries: Libraries,
    ) -> None:
        self.output, self.output_grad = output, th.empty(output.shape)
        self.forward = Product(libraries, x, weight.t(), output, "nt", bias)
        if grads is not None:
            self.weight_grad = Product(libraries, self.output_grad.t(), x, grads[0], "tn")
            self.bias_grad = grads[1].numpy()
            self.output_grad_t = self.output_grad.numpy().T


class Mlp:
    """
    A network's forward and backward pass for batches of one size.

    :param parameters: weight and bias of each layer, in order
    :param x: input of the first layer, shape ``(batch, n_in)``; a view into a batch
    :param action_dim: size of the action that is appended to one layer's input; 0 for none
    :param action_layer: which layer that is; 0 means that ``x`` holds it already
    :param tanh: whether the hidden activation is tanh instead of ReLU
    :param libraries: what the products go to
    :param grads: memory for the parameters' gradients, in their order; ``None`` for a target network
    """

    def __init__(
        self,
        parameters: list[th.Tensor],
        x: th.Tensor,
        action_dim: int,
        action_layer: int,
        tanh: bool,
        libraries: Libraries,
        grads: list[th.Tensor] | None = None,
    ) -> None:
        self.action_dim = action_dim
        self.action_layer = action_layer
        batch = x.shape[0]
        self.ones = np.ones(batch, x.numpy().dtype)
        self.layers: list[Layer] = []
        # Of each hidden layer the activation, and the product from the next layer's dL/dz to its own dL/dh.
        self.activations: list[Activation] = []
        self.input_grads: list[Product] = []
        for index in range(0, len(parameters), 2):
            weight, bias = parameters[index : index + 2]
            n_out = len(bias)
            if index == 2 * action_layer:
                # Where the action has to be written before forward(), and the product from its layer to its gradient.
                before_action = x.shape[1] - action_dim
                self.action = x[:, before_action:].numpy()
                self.action_grad = np.empty((batch, action_dim), self.ones.dtype)
                action_weight = weight[:, before_action:]
            # The hidden values lie where the next layer reads them: in front of the action, where it joins.
            following = th.empty(batch, n_out + (action_dim if action_dim and 2 * action_layer == index + 2 else 0))
            pair = None if grads is None else (grads[index], grads[index + 1])
            layer = Layer(weight, bias, x, following[:, :n_out], pair, libraries)
            if self.layers:
                hidden = self.layers[-1]
                self.activations.append(Activation(hidden.output, hidden.output_grad, tanh))
                back = weight[:, : hidden.output.shape[1]]
                self.input_grads.append(Product(libraries, layer.output_grad, back, hidden.output_grad, "nn"))
            self.layers.append(layer)
            x = following
        if action_dim:
            joined, out = self.layers[action_layer], th.from_numpy(self.action_grad)
            self.action_product = Product(libraries, joined.output_grad, action_weight, out, "nn")
        self.output, self.output_grad = self.layers[-1].output.numpy(), self.layers[-1].output_grad.numpy()

    def forward(self) -> None:
        """From the input to ``output`` (of the actor: what tanh is applied to)."""
        for layer, activation in zip(self.layers, self.activations, strict=False):
            layer.forward()
            activation.forward()
        self.layers[-1].forward()

    def backward(self) -> None:
        """From ``output_grad`` to the parameters' gradients."""
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            layer.weight_grad()
            np.dot(layer.output_grad_t, self.ones, layer.bias_grad)
            if index > 0:
                self._backward_hidden(index - 1)

    def backward_to_action(self) -> None:
        """From ``output_grad`` to ``action_grad``, shape ``(batch, action_dim)``, alone."""
        for index in range(len(self.layers) - 2, self.action_layer - 1, -1):
            self._backward_hidden(index)
        self.action_product()

    def _backward_hidden(self, index: int) -> None:
        """From dL/dz of the next layer to dL/dz of a hidden one."""
        self.input_grads[index]()
        self.activations[index].backward()


class AnalyticUpdater(HandWrittenUpdater):
    """
    One DDPG update of a policy's networks by hand-written gradients, in place, on the CPU.

    :param policy: a policy for which :func:`~sb3_ddpg_scratch.updates.choice.why_not_by_hand` finds nothing
    """

    name = "analytic"

    def __init__(self, policy: ScratchDDPGPolicy) -> None:
        super().__init__(policy)
        self.libraries = Libraries()
        self._squared_errors = np.zeros((0, policy.n_critics))
        self._q_sums = np.zeros(0)

    # -------------------------------------------------------------------------------------------------------- Memory

    def _make_memory(self, batch_size: int) -> None:
        """Everything an update of this batch size writes to."""
        policy, columns = self.policy, self.columns
        action_dim = columns.action_dim
        self.batch_size = batch_size
        memory = th.zeros(batch_size, columns.width + action_dim)
        self.rows = memory[:, : columns.width]
        self.observations = memory[:, columns.observation]
        self.actions = memory[:, columns.action].numpy()
        self.next_observations = memory[:, columns.next_observation]
        self.rewards = memory[:, columns.reward, None].numpy()
        self.continuations = memory[:, columns.continuation, None].numpy()
        common = (self.tanh, self.libraries)

        n_actor = len(list(policy.actor.parameters()))
        n_each = (len(self.trained.views) - n_actor) // policy.n_critics
        self.actor = Mlp(self.trained.views[:n_actor], self.observations, 0, 0, *common, self.actor_adam.grads)
        self.actor_target = Mlp(self.targets.views[:n_actor], self.next_observations, 0, 0, *common)

        def critics(views: list[th.Tensor], observation: slice, grads: list[th.Tensor] | None = None) -> list[Mlp]:
            # With the action at the input, observation and action stand side by side in the batch.
            stop = observation.stop + (0 if policy.action_layer else action_dim)
            x = memory[:, observation.start : stop]
            starts = range(n_actor, len(views), n_each)
            of_each = [None if grads is None else grads[i - n_actor :][:n_each] for i in starts]
            return [
                Mlp(views[i : i + n_each], x, action_dim, policy.action_layer, *common, its_grads)
                for i, its_grads in zip(starts, of_each, strict=True)
            ]

        self.critics = critics(self.trained.views, columns.observation, self.critic_adam.grads)
        self.critic_targets = critics(self.targets.views, columns.next_observation)

        dtype = self.actor.output.dtype
        self.target_q_values = np.zeros((batch_size, 1), dtype)
        self.errors = [np.zeros((batch_size, 1), dtype) for _ in self.critics]
        self._slope = np.zeros((batch_size, action_dim), dtype)

    def _reserve_losses(self, count: int) -> None:
        """Memory for the losses of that many updates, as sums over the batch."""
        if len(self._q_sums) < count:
            self._squared_errors = np.zeros((count, self.policy.n_critics))
            self._q_sums = np.zeros(count)

    # --------------------------------------------------------------------------------------------------------- Updates

    def train(
        self,
        buffer: ReplayBuffer,
        gradient_steps: int,
        batch_size: int,
        settings: UpdateSettings,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.train`."""
        with th.no_grad(), settings_kept(), self.one_blas_thread:
            self.begin()
            self._reserve_losses(gradient_steps)
            self.libraries.begin()
            batches = Batches(buffer, batch_size, gradient_steps, self.columns, settings.gamma, env)
            for number in range(gradient_steps):
                size = batches.prepare()
                if size != self.batch_size:
                    self._make_memory(size)
                batches.write(number, self.rows)
                turn = (n_updates + number + 1) % settings.policy_delay == 0
                self.update(batches.discount, settings, update_policy=turn)

    def update(self, gamma: float, settings: UpdateSettings, update_policy: bool) -> None:
        """
        One update on the batch in ``rows``.

        :param gamma: factor of the next Q-value besides the continuation
        :param settings: the numbers of the update
        :param update_policy: whether it is the actor's and the targets' turn as well
        """
        self._td_target(gamma, settings)
        self._critic_step(settings)
        if update_policy:
            self._actor_step(settings)
            self.targets.vector.lerp_(self.trained.vector, settings.tau)

    def _td_target(self, gamma: float, settings: UpdateSettings) -> None:
        """``y = r + gamma c min_i Q_i'(s', mu'(s'))``, with c the continuation."""
        self.actor_target.forward()
        next_action = self.critic_targets[0].action
        np.tanh(self.actor_target.output, out=next_action)
        if settings.target_policy_noise > 0:
            noise = th.empty(next_action.shape).normal_(0, settings.target_policy_noise)
            next_action += noise.clamp_(-settings.target_noise_clip, settings.target_noise_clip).numpy()
            np.clip(next_action, -1, 1, out=next_action)
        for critic in self.critic_targets:
            if critic.action_layer:
                critic.action[:] = next_action
            critic.forward()
        next_q_values = self.critic_targets[0].output
        for critic in self.critic_targets[1:]:
            np.minimum(next_q_values, critic.output, out=next_q_values)
        np.multiply(self.continuations, next_q_values, out=self.target_q_values)
        self.target_q_values *= gamma
        self.target_q_values += self.rewards

    def _critic_step(self, settings: UpdateSettings) -> None:
        """``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``."""
        for number, (critic, error) in enumerate(zip(self.critics, self.errors, strict=True)):
            if critic.action_layer:
                critic.action[:] = self.actions
            critic.forward()
            np.subtract(critic.output, self.target_q_values, out=error)
            flat_error = error[:, 0]
            self._squared_errors[self.updates, number] = np.dot(flat_error, flat_error)
            np.multiply(error, 2 / self.batch_size, out=critic.output_grad)
            critic.backward()
        self._step(self.critic_adam, settings.max_grad_norm)
        self.updates += 1

    def _actor_step(self, settings: UpdateSettings) -> None:
        """``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to the actor."""
        critic = self.critics[0]
        self.actor.forward()
        # The sampled action has served: its place takes the policy's.
        np.tanh(self.actor.output, out=critic.action)
        critic.forward()
        self._q_sums[self.actor_updates] = np.dot(critic.output[:, 0], critic.ones)
        critic.output_grad.fill(-1 / self.batch_size)
        critic.backward_to_action()
        tanh_backward(critic.action, critic.action_grad, self._slope, self.actor.output_grad)
        self.actor.backward()
        self._step(self.actor_adam, settings.max_grad_norm)
        self.actor_updates += 1

    def _step(self, adam: FlatAdam, max_grad_norm: float | None) -> None:
        """Adam (Kingma and Ba 2015, Algorithm 1) or AdamW on a flat vector, after clipping by the global norm."""
        if max_grad_norm is not None:
            adam.grad_norm = th.linalg.vector_norm(adam.grad)
            adam.grad.mul_(th.clamp(max_grad_norm / (adam.grad_norm + 1e-6), max=1.0))
        adam.advance()
        learning_rate, beta1, beta2, eps, weight_decay = adam.settings
        fused = th._fused_adamw_ if adam.decoupled_decay else th._fused_adam_
        fused(
            [adam.vector],
            [adam.grad],
            [adam.exp_avg],
            [adam.exp_avg_sq],
            [],
            [adam.first_step],
            lr=learning_rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )

    # --------------------------------------------------------------------------------------------------------- Reading

    def critic_losses(self) -> list[float]:
        """See :meth:`HandWrittenUpdater.critic_losses`."""
        return [sum(errors) / self.batch_size for errors in self._squared_errors[: self.updates].tolist()]

    def actor_losses(self) -> list[float]:
        """See :meth:`HandWrittenUpdater.actor_losses`."""
        return [-value / self.batch_size for value in self._q_sums[: self.actor_updates].tolist()]

    def q_means(self) -> tuple[float, float]:
        """See :meth:`HandWrittenUpdater.q_means`."""
        target_mean = float(self.target_q_values.mean())
        return float(sum(error.mean() for error in self.errors)) / len(self.errors) + target_mean, target_mean
