"""
The update with both losses' gradients written out by hand, for actors and critics that are plain MLPs.

``forward`` and ``backward`` of a layer stand side by side in :class:`Mlp`. With z = x W' + b, h = f(z) and a gradient
dL/dh, the chain rule is ``dL/dz = dL/dh f'(z)``, ``dL/dW = (dL/dz)' x``, ``dL/db = sum over the batch of dL/dz`` and
``dL/dx = dL/dz W`` (' is the transpose). Everything is written into memory made once, parameters and moments are flat
vectors (:mod:`~sb3_ddpg_scratch.updates.flat`), and gradients that no step uses are not computed: none of the critic's
parameters in the actor's step, none of the observation.
"""

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import Batches
from sb3_ddpg_scratch.updates.flat import FlatAdam
from sb3_ddpg_scratch.updates.handwritten import HandWrittenUpdater
from sb3_ddpg_scratch.updates.interface import UpdateSettings
from sb3_ddpg_scratch.updates.products import Libraries, Product, settings_kept

# dL/dz from dL/dh and h, in place of the former: relu'(z) = [h > 0], tanh'(z) = 1 - h^2.
_relu_backward = th.ops.aten.threshold_backward.grad_input
_tanh_backward = th.ops.aten.tanh_backward.grad_input


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
        self.weight, self.input, self.output = weight, x, output
        self.output_grad = th.empty(output.shape)
        self.forward = Product(libraries, x, weight.t(), output, "nt", bias)
        if grads is not None:
            self.output_grad_t = self.output_grad.t()
            self.weight_grad = Product(libraries, self.output_grad_t, x, grads[0], "tn")
            self.bias_grad = grads[1]


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
        self.tanh = tanh
        self.action_dim = action_dim
        self.action_layer = action_layer
        batch = x.shape[0]
        self.ones = th.ones(batch)
        self.layers: list[Layer] = []
        # For each layer but the first, the product from its output's gradient to that of the layer before.
        self.input_grads: list[Product | None] = [None]
        for index in range(0, len(parameters), 2):
            weight, bias = parameters[index : index + 2]
            n_out = len(bias)
            # The hidden values lie where the next layer reads them: in front of the action, where it joins.
            following = th.empty(batch, n_out + (action_dim if action_dim and 2 * action_layer == index + 2 else 0))
            pair = None if grads is None else (grads[index], grads[index + 1])
            layer = Layer(weight, bias, x, following[:, :n_out], pair, libraries)
            if self.layers:
                before = self.layers[-1].output_grad
                back = weight[:, : before.shape[1]]
                # With a single output it is no product of matrices.
                product = Product(libraries, layer.output_grad, back, before, "nn") if n_out > 1 else None
                self.input_grads.append(product)
            self.layers.append(layer)
            x = following
        # Where the action has to be written before forward().
        self.action = self.layers[action_layer].input[:, self.layers[action_layer].input.shape[1] - action_dim :]
        self.output = self.layers[-1].output
        self.output_grad = self.layers[-1].output_grad

    def forward(self) -> None:
        """From the input to ``output`` (of the actor: what tanh is applied to)."""
        *hidden, last = self.layers
        for layer in hidden:
            layer.forward()
            if self.tanh:
                layer.output.tanh_()
            else:
                layer.output.relu_()
        last.forward()

    def backward(self) -> None:
        """From ``output_grad`` to the parameters' gradients."""
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            layer.weight_grad()
            th.mv(layer.output_grad_t, self.ones, out=layer.bias_grad)
            if index > 0:
                self._backward_hidden(index)

    def backward_to_action(self, out: th.Tensor) -> None:
        """
        From ``output_grad`` to the gradient with respect to the action alone.

        :param out: where to write it, shape ``(batch, action_dim)``
        """
        for index in range(len(self.layers) - 1, self.action_layer, -1):
            self._backward_hidden(index)
        layer = self.layers[self.action_layer]
        th.mm(layer.output_grad, layer.weight[:, layer.weight.shape[1] - self.action_dim :], out=out)

    def _backward_hidden(self, index: int) -> None:
        """From a layer's ``output_grad`` through its weights and the activation before it to the previous layer's."""
        layer, previous, product = self.layers[index], self.layers[index - 1], self.input_grads[index]
        if product is None:
            th.mul(layer.output_grad, layer.weight[:, : previous.output.shape[1]], out=previous.output_grad)
        else:
            product()
        if self.tanh:
            _tanh_backward(previous.output_grad, previous.output, grad_input=previous.output_grad)
        else:
            _relu_backward(previous.output_grad, previous.output, 0, grad_input=previous.output_grad)


class AnalyticUpdater(HandWrittenUpdater):
    """
    One DDPG update of a policy's networks by hand-written gradients, in place, on the CPU.

    :param policy: a policy for which :func:`~sb3_ddpg_scratch.updates.choice.why_not_by_hand` finds nothing
    """

    name = "analytic"

    def __init__(self, policy: ScratchDDPGPolicy) -> None:
        super().__init__(policy)
        self.libraries = Libraries()
        self._squared_errors: list[tuple[th.Tensor, ...]] = []
        self._q_sums: tuple[th.Tensor, ...] = ()

    # -------------------------------------------------------------------------------------------------------- Memory

    def _make_memory(self, batch_size: int) -> None:
        """Everything an update of this batch size writes to."""
        policy, columns = self.policy, self.columns
        action_dim = columns.action_dim
        self.batch_size = batch_size
        memory = th.zeros(batch_size, columns.width + action_dim)
        self.rows = memory[:, : columns.width]
        self.observations = memory[:, columns.observation]
        self.actions = memory[:, columns.action]
        self.next_observations = memory[:, columns.next_observation]
        self.rewards = memory[:, columns.reward, None]
        self.continuations = memory[:, columns.continuation, None]
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

        self.target_q_values = th.zeros(batch_size, 1)
        self.errors = [th.zeros(batch_size, 1) for _ in self.critics]
        self.action_grad = th.zeros(batch_size, action_dim)

    def _reserve_losses(self, count: int) -> None:
        """Memory for the losses of that many updates, as sums over the batch."""
        if len(self._q_sums) < count:
            self._squared_errors = [th.zeros(self.policy.n_critics).unbind() for _ in range(count)]
            self._q_sums = th.zeros(count).unbind()

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
        with th.no_grad(), settings_kept():
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
        th.tanh(self.actor_target.output, out=next_action)
        if settings.target_policy_noise > 0:
            noise = th.empty_like(self.action_grad).normal_(0, settings.target_policy_noise)
            next_action.add_(noise.clamp_(-settings.target_noise_clip, settings.target_noise_clip)).clamp_(-1, 1)
        for critic in self.critic_targets:
            if critic.action.data_ptr() != next_action.data_ptr():
                critic.action.copy_(next_action)
            critic.forward()
        next_q_values = self.critic_targets[0].output
        for critic in self.critic_targets[1:]:
            th.minimum(next_q_values, critic.output, out=next_q_values)
        th.addcmul(self.rewards, self.continuations, next_q_values, value=gamma, out=self.target_q_values)

    def _critic_step(self, settings: UpdateSettings) -> None:
        """``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``."""
        squared_errors = self._squared_errors[self.updates]
        for critic, error, squared in zip(self.critics, self.errors, squared_errors, strict=True):
            if critic.action_layer:
                critic.action.copy_(self.actions)
            critic.forward()
            th.sub(critic.output, self.target_q_values, out=error)
            flat_error = error.view(-1)
            th.dot(flat_error, flat_error, out=squared)
            th.mul(error, 2 / self.batch_size, out=critic.output_grad)
            critic.backward()
        self._step(self.critic_adam, settings.max_grad_norm)
        self.updates += 1

    def _actor_step(self, settings: UpdateSettings) -> None:
        """``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to the actor."""
        critic = self.critics[0]
        self.actor.forward()
        # The sampled action has served: its place takes the policy's.
        th.tanh(self.actor.output, out=critic.action)
        critic.forward()
        th.sum(critic.output, dim=(0, 1), out=self._q_sums[self.actor_updates])
        critic.output_grad.fill_(-1 / self.batch_size)
        critic.backward_to_action(self.action_grad)
        _tanh_backward(self.action_grad, critic.action, grad_input=self.actor.output_grad)
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
        return [sum(value.item() for value in sums) / self.batch_size for sums in self._squared_errors[: self.updates]]

    def actor_losses(self) -> list[float]:
        """See :meth:`HandWrittenUpdater.actor_losses`."""
        return [-value.item() / self.batch_size for value in self._q_sums[: self.actor_updates]]

    def q_means(self) -> tuple[float, float]:
        """See :meth:`HandWrittenUpdater.q_means`."""
        target_mean = self.target_q_values.mean().item()
        return sum(error.mean().item() for error in self.errors) / len(self.errors) + target_mean, target_mean
